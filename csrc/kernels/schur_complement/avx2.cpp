// Schur complement for avx2; the body is shared, the lanes are not.
#include "kernels/common/doubles_avx2.h"

#include "body.h"

namespace approxrt {

void schur_complement_avx2(const SchurComplementArgs& args) { schur_complement(args); }

}  // namespace approxrt
