// activation for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void activation_avx512(const ActivationArgs& args) { activation(args); }

}  // namespace approxrt
