// sign_attention for avx512 (sign_attention_body.h).
#include "bits_avx512.h"

#include "sign_attention_body.h"

namespace approxrt {

void sign_attention_avx512(const SignAttentionArgs& args) { sign_attention(args); }

}  // namespace approxrt
