// layer_norm for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void layer_norm_avx2(const LayerNormArgs& args) { layer_norm(args); }

}  // namespace approxrt
