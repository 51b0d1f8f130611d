// rms_norm for avx2; the body is shared, the lanes are not.
#include "vec_avx2.h"

#include "rms_norm_body.h"

namespace approxrt {

void rms_norm_avx2(const RmsNormArgs& args) { rms_norm(args); }

}  // namespace approxrt
