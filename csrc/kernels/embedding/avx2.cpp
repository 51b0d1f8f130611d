// embedding for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void embedding_avx2(const EmbeddingArgs& args) { embedding(args); }

}  // namespace approxrt
