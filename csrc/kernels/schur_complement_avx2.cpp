// Schur complement for avx2; the body is shared, the lanes are not.
#include "doubles_avx2.h"

#include "schur_complement_body.h"

namespace approxrt {

void schur_complement_avx2(const SchurComplementArgs& args) { schur_complement(args); }

}  // namespace approxrt
