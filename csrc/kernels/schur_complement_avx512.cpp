// Schur complement for avx512; the body is shared, the lanes are not.
#include "doubles_avx512.h"

#include "schur_complement_body.h"

namespace approxrt {

void schur_complement_avx512(const SchurComplementArgs& args) { schur_complement(args); }

}  // namespace approxrt
