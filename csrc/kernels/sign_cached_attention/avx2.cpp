// sign_cached_attention for avx2 (body.h).
#include "kernels/common/bits_avx2.h"

#include "body.h"

namespace approxrt {

void sign_cached_attention_avx2(const SignCachedAttentionArgs& args) { sign_cached_attention(args); }

}  // namespace approxrt
