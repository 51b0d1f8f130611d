// attention for avx2: 6 rows a register block (common/micro_f32.h).
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void attention_avx2(const AttentionArgs& args) { attention<6>(args); }

}  // namespace approxrt
