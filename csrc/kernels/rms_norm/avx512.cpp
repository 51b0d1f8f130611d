// rms_norm for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void rms_norm_avx512(const RmsNormArgs& args) { rms_norm(args); }

}  // namespace approxrt
