// gated for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void gated_avx512(const GatedArgs& args) { gated(args); }

}  // namespace approxrt
