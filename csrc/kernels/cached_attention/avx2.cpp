// cached_attention for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void cached_attention_avx2(const CachedAttentionArgs& args) { cached_attention(args); }

}  // namespace approxrt
