// layer_norm for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void layer_norm_avx512(const LayerNormArgs& args) { layer_norm(args); }

}  // namespace approxrt
