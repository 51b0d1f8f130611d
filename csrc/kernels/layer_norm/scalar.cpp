// Layer normalisation over a row, biased variance, two passes: the definition.
#include <cmath>

#include "args.h"

namespace approxrt {

void layer_norm_scalar(const LayerNormArgs& a) {
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        float* y = a.y + t * a.ldy;
        double sum = 0.0, squares = 0.0;
        for (int32_t i = 0; i < a.width; ++i) sum += x[i];
        const double mean = sum / a.width;
        for (int32_t i = 0; i < a.width; ++i) squares += (x[i] - mean) * (x[i] - mean);
        const double inv = 1.0 / std::sqrt(squares / a.width + a.eps);
        for (int32_t i = 0; i < a.width; ++i) y[i] = static_cast<float>((x[i] - mean) * inv) * a.gamma[i] + a.beta[i];
    }
}

}  // namespace approxrt
