// softmax for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void softmax_avx512(const SoftmaxArgs& args) { softmax(args); }

}  // namespace approxrt
