// cached_attention for avx512; the body is shared, the lanes are not.
#include "vec_avx512.h"

#include "cached_attention_body.h"

namespace approxrt {

void cached_attention_avx512(const CachedAttentionArgs& args) { cached_attention(args); }

}  // namespace approxrt
