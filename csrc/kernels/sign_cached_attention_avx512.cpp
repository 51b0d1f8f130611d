// sign_cached_attention for avx512 (sign_cached_attention_body.h).
#include "bits_avx512.h"

#include "sign_cached_attention_body.h"

namespace approxrt {

void sign_cached_attention_avx512(const SignCachedAttentionArgs& args) { sign_cached_attention(args); }

}  // namespace approxrt
