// sign_cached_attention for avx512 (body.h).
#include "kernels/common/bits_avx512.h"

#include "body.h"

namespace approxrt {

void sign_cached_attention_avx512(const SignCachedAttentionArgs& args) { sign_cached_attention(args); }

}  // namespace approxrt
