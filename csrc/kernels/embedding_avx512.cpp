// embedding for avx512; the body is shared, the lanes are not.
#include "vec_avx512.h"

#include "embedding_body.h"

namespace approxrt {

void embedding_avx512(const EmbeddingArgs& args) { embedding(args); }

}  // namespace approxrt
