// gated for avx2; the body is shared, the lanes are not.
#include "vec_avx2.h"

#include "gated_body.h"

namespace approxrt {

void gated_avx2(const GatedArgs& args) { gated(args); }

}  // namespace approxrt
