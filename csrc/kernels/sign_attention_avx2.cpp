// sign_attention for avx2 (sign_attention_body.h).
#include "bits_avx2.h"

#include "sign_attention_body.h"

namespace approxrt {

void sign_attention_avx2(const SignAttentionArgs& args) { sign_attention(args); }

}  // namespace approxrt
