// activation for avx2; the body is shared, the lanes are not.
#include "vec_avx2.h"

#include "activation_body.h"

namespace approxrt {

void activation_avx2(const ActivationArgs& args) { activation(args); }

}  // namespace approxrt
