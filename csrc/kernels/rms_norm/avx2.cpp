// rms_norm for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void rms_norm_avx2(const RmsNormArgs& args) { rms_norm(args); }

}  // namespace approxrt
