// sign_cached_attention for avx2 (sign_cached_attention_body.h).
#include "bits_avx2.h"

#include "sign_cached_attention_body.h"

namespace approxrt {

void sign_cached_attention_avx2(const SignCachedAttentionArgs& args) { sign_cached_attention(args); }

}  // namespace approxrt
