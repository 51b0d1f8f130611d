// int8 GEMM, dense and block-sparse: the definition, with the unsigned operand of vpdpbusd.
#include "args.h"

namespace approxrt {

float activate_scalar(float x, Act act);

void gemm_int8_scalar(const GemmInt8Args& a) {
    constexpr PanelLayout layout = byte_panels(8);
    const PackedInt8& w = *a.w;
    const size_t panel_bytes = layout.panel_bytes(w.k);
    for (int32_t g = a.strip_begin; g < a.strip_end; ++g) {
        for (int32_t t = 0; t < a.rows; ++t) {
            const uint8_t* panel = static_cast<const uint8_t*>(a.panels) + (t / layout.mr) * panel_bytes;
            int32_t acc[kTileN] = {};
            for (int32_t tile = w.indptr[g]; tile < w.indptr[g + 1]; ++tile) {
                const size_t offset =
                    w.offsets ? w.offsets[tile] : static_cast<size_t>(tile - w.indptr[g]) * layout.group_bytes();
                const uint8_t* u = panel + offset + (t % layout.mr) * kTileK;
                const int8_t* q = w.tiles + static_cast<int64_t>(tile) * kTileN * kTileK;
                for (int o = 0; o < kTileN; ++o)
                    for (int j = 0; j < kTileK; ++j) acc[o] += static_cast<int32_t>(u[j]) * q[o * kTileK + j];
            }
            const int64_t column = static_cast<int64_t>(g) * kTileN, behind = g - a.strip_begin;
            for (int o = 0; o < kTileN; ++o) {
                const int32_t sum = acc[o] - w.correction[column + o];
                if (a.accumulators) a.accumulators[t * static_cast<int64_t>(w.strips) * kTileN + column + o] = sum;
                float y = static_cast<float>(sum) * (a.act_scales[t] * w.scale[column + o]) + w.bias[column + o];
                y = activate_scalar(y, a.act);
                if (a.residual) y += a.residual[t * a.ldr + behind * kTileN + o];
                a.y[behind * a.y_strip + t * a.ldy + o] = y;
            }
        }
    }
}

}  // namespace approxrt
