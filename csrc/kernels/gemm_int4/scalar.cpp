// int4 GEMM, dense and block-sparse: the definition. Equal to gemm_int8 with weights m * q4.
#include "args.h"

namespace approxrt {

float activate_scalar(float x, Act act);

void gemm_int4_scalar(const GemmInt4Args& args) {
    constexpr PanelLayout layout = byte_panels(8);
    const GemmInt8Args& a = args.common;
    const PackedInt8& w = args.w->linear;
    const size_t panel_bytes = layout.panel_bytes(w.k);
    const auto* tiles = reinterpret_cast<const uint8_t*>(w.tiles);
    for (int32_t g = a.strip_begin; g < a.strip_end; ++g) {
        const uint8_t* scales = args.w->group_scale + static_cast<int64_t>(args.w->group_ptr[g]) * kTileN;
        for (int32_t t = 0; t < a.rows; ++t) {
            const uint8_t* panel = static_cast<const uint8_t*>(a.panels) + (t / layout.mr) * panel_bytes;
            int32_t acc[kTileN] = {};
            for (int32_t tile = w.indptr[g]; tile < w.indptr[g + 1]; ++tile) {
                const int32_t i = tile - w.indptr[g];
                const size_t offset = w.offsets ? w.offsets[tile] : static_cast<size_t>(i) * layout.group_bytes();
                const uint8_t* u = panel + offset + (t % layout.mr) * kTileK;
                const uint8_t* nibbles = tiles + static_cast<int64_t>(tile) * kInt4TileBytes;
                const uint8_t* m = scales + i / kGroupTiles * kTileN;
                for (int o = 0; o < kTileN; ++o)
                    for (int j = 0; j < kTileK; ++j) {
                        const int byte = nibbles[(o * kTileK + j) % kInt4TileBytes];
                        const int q4 = (o < kTileN / 2 ? byte & 15 : byte >> 4) - 8;
                        acc[o] += static_cast<int32_t>(u[j]) * (m[o] * q4);
                    }
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
