// attention_int16 for avx512: 8 queries a register block (attention_int16_body.h).
#include "vec_int_avx512.h"

#include "attention_int16_body.h"

namespace approxrt {

void attention_int16_avx512(const AttentionArgs& args) { attention_int16<8>(args); }

}  // namespace approxrt
