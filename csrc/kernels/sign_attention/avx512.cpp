// sign_attention for avx512 (body.h).
#include "kernels/common/bits_avx512.h"

#include "body.h"

namespace approxrt {

void sign_attention_avx512(const SignAttentionArgs& args) { sign_attention(args); }

}  // namespace approxrt
