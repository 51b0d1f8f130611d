// rope for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void rope_avx512(const RopeArgs& args) { rope(args); }

}  // namespace approxrt
