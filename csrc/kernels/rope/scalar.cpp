// Rotary positions (Su et al. 2021, arXiv 2104.09864) in halves: the definition.
#include "decoder_args.h"

namespace approxrt {

void rope_scalar(const RopeArgs& a) {
    const int32_t half = a.head_dim / 2;
    for (int32_t t = 0; t < a.rows; ++t)
        for (int32_t h = 0; h < a.heads; ++h) {
            float* x = a.x + t * a.ldx + static_cast<int64_t>(h) * a.head_dim;
            for (int32_t i = 0; i < half; ++i) {
                const float c = a.cos[static_cast<int64_t>(t) * half + i],
                            s = a.sin[static_cast<int64_t>(t) * half + i];
                const float first = x[i], second = x[half + i];
                x[i] = first * c - second * s;
                x[half + i] = second * c + first * s;
            }
        }
}

}  // namespace approxrt
