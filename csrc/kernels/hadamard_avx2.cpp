// hadamard for avx2; the body is shared, the lanes are not.
#include "vec_avx2.h"

#include "hadamard_body.h"

namespace approxrt {

void hadamard_avx2(const HadamardArgs& args) { hadamard(args); }

}  // namespace approxrt
