// cached_attention for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void cached_attention_avx512(const CachedAttentionArgs& args) { cached_attention(args); }

}  // namespace approxrt
