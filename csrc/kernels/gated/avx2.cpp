// gated for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void gated_avx2(const GatedArgs& args) { gated(args); }

}  // namespace approxrt
