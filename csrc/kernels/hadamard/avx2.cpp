// hadamard for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void hadamard_avx2(const HadamardArgs& args) { hadamard(args); }

}  // namespace approxrt
