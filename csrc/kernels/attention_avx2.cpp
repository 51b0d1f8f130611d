// attention for avx2: 6 rows a register block (micro_f32.h).
#include "vec_avx2.h"

#include "attention_body.h"

namespace approxrt {

void attention_avx2(const AttentionArgs& args) { attention<6>(args); }

}  // namespace approxrt
