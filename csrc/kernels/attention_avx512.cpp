// attention for avx512: 8 rows a register block (micro_f32.h).
#include "vec_avx512.h"

#include "attention_body.h"

namespace approxrt {

void attention_avx512(const AttentionArgs& args) { attention<8>(args); }

}  // namespace approxrt
