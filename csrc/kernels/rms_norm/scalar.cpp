// RMS normalisation (Zhang and Sennrich 2019, arXiv 1910.07467): the definition.
#include <cmath>

#include "decoder_args.h"

namespace approxrt {

void rms_norm_scalar(const RmsNormArgs& a) {
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        double squares = 0.0;
        for (int32_t i = 0; i < a.width; ++i) squares += static_cast<double>(x[i]) * x[i];
        const double inv = 1.0 / std::sqrt(squares / a.width + a.eps);
        for (int32_t i = 0; i < a.width; ++i) a.y[t * a.ldy + i] = static_cast<float>(x[i] * inv) * a.gamma[i];
    }
}

}  // namespace approxrt
