// activation for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void activation_avx2(const ActivationArgs& args) { activation(args); }

}  // namespace approxrt
