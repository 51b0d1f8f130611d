// attention_int16 for avxvnni: 6 queries a register block (body.h).
#include "vec_int_avx2.h"

#include "body.h"

namespace approxrt {

void attention_int16_avxvnni(const AttentionArgs& args) { attention_int16<6>(args); }

}  // namespace approxrt
