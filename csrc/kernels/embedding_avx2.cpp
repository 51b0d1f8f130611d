// embedding for avx2; the body is shared, the lanes are not.
#include "vec_avx2.h"

#include "embedding_body.h"

namespace approxrt {

void embedding_avx2(const EmbeddingArgs& args) { embedding(args); }

}  // namespace approxrt
