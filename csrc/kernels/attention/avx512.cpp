// attention for avx512: 8 rows a register block (common/micro_f32.h).
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void attention_avx512(const AttentionArgs& args) { attention<8>(args); }

}  // namespace approxrt
