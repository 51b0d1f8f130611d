// gated for avx512; the body is shared, the lanes are not.
#include "vec_avx512.h"

#include "gated_body.h"

namespace approxrt {

void gated_avx512(const GatedArgs& args) { gated(args); }

}  // namespace approxrt
