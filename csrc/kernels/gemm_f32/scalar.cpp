// f32 GEMM: the definition.
#include "args.h"

namespace approxrt {

float activate_scalar(float x, Act act);

void gemm_f32_scalar(const GemmF32Args& a) {
    const PackedF32& w = *a.w;
    for (int32_t g = a.strip_begin; g < a.strip_end; ++g) {
        const float* strip = w.w + static_cast<int64_t>(g) * w.k * kTileN;
        const int64_t column = static_cast<int64_t>(g) * kTileN, behind = g - a.strip_begin;
        for (int32_t t = 0; t < a.rows; ++t) {
            const float* x = a.x + t * a.ldx;
            float acc[kTileN] = {};
            for (int32_t k = 0; k < w.k; ++k)
                for (int o = 0; o < kTileN; ++o) acc[o] += x[k] * strip[static_cast<int64_t>(k) * kTileN + o];
            for (int o = 0; o < kTileN; ++o) {
                float y = activate_scalar(acc[o] + w.bias[column + o], a.act);
                if (a.residual) y += a.residual[t * a.ldr + behind * kTileN + o];
                a.y[behind * a.y_strip + t * a.ldy + o] = y;
            }
        }
    }
}

}  // namespace approxrt
