// softmax for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void softmax_avx2(const SoftmaxArgs& args) { softmax(args); }

}  // namespace approxrt
