// layer_norm for avx2; the body is shared, the lanes are not.
#include "vec_avx2.h"

#include "layer_norm_body.h"

namespace approxrt {

void layer_norm_avx2(const LayerNormArgs& args) { layer_norm(args); }

}  // namespace approxrt
