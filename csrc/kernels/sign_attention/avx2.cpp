// sign_attention for avx2 (body.h).
#include "kernels/common/bits_avx2.h"

#include "body.h"

namespace approxrt {

void sign_attention_avx2(const SignAttentionArgs& args) { sign_attention(args); }

}  // namespace approxrt
