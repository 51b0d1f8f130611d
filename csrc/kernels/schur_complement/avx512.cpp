// Schur complement for avx512; the body is shared, the lanes are not.
#include "kernels/common/doubles_avx512.h"

#include "body.h"

namespace approxrt {

void schur_complement_avx512(const SchurComplementArgs& args) { schur_complement(args); }

}  // namespace approxrt
