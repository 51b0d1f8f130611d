// rope for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void rope_avx2(const RopeArgs& args) { rope(args); }

}  // namespace approxrt
