// hadamard for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void hadamard_avx512(const HadamardArgs& args) { hadamard(args); }

}  // namespace approxrt
