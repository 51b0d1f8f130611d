// embedding for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void embedding_avx512(const EmbeddingArgs& args) { embedding(args); }

}  // namespace approxrt
