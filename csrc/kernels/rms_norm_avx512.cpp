// rms_norm for avx512; the body is shared, the lanes are not.
#include "vec_avx512.h"

#include "rms_norm_body.h"

namespace approxrt {

void rms_norm_avx512(const RmsNormArgs& args) { rms_norm(args); }

}  // namespace approxrt
