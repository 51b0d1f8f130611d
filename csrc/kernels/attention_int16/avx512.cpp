// attention_int16 for avx512: 8 queries a register block (body.h).
#include "vec_int_avx512.h"

#include "body.h"

namespace approxrt {

void attention_int16_avx512(const AttentionArgs& args) { attention_int16<8>(args); }

}  // namespace approxrt
