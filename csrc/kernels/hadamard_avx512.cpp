// hadamard for avx512; the body is shared, the lanes are not.
#include "vec_avx512.h"

#include "hadamard_body.h"

namespace approxrt {

void hadamard_avx512(const HadamardArgs& args) { hadamard(args); }

}  // namespace approxrt
