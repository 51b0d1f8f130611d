// int8 products of a few tokens: the definition, with gemm_int8_scalar's arithmetic.
#include "decoder_args.h"

namespace approxrt {

float activate_scalar(float x, Act act);

// Shared with gemv_int4_scalar: sums [16] of a token and strip become outputs.
void finish_gemv_scalar(const GemmInt8Args& a, int32_t t, int32_t strip, const int32_t* sums) {
    const PackedInt8& w = *a.w;
    const int64_t column = static_cast<int64_t>(strip) * kTileN, behind = strip - a.strip_begin;
    for (int o = 0; o < kTileN; ++o) {
        if (a.accumulators) a.accumulators[t * static_cast<int64_t>(w.strips) * kTileN + column + o] = sums[o];
        float y = static_cast<float>(sums[o]) * (a.act_scales[t] * w.scale[column + o]) + w.bias[column + o];
        y = activate_scalar(y, a.act);
        if (a.residual) y += a.residual[t * a.ldr + behind * kTileN + o];
        a.y[behind * a.y_strip + t * a.ldy + o] = y;
    }
}

void gemv_int8_scalar(const GemvInt8Args& args) {
    const GemmInt8Args& a = args.common;
    const PackedInt8& w = *a.w;
    for (int32_t g = a.strip_begin; g < a.strip_end; ++g)
        for (int32_t t = 0; t < a.rows; ++t) {
            int32_t acc[kTileN] = {};
            for (int32_t tile = w.indptr[g]; tile < w.indptr[g + 1]; ++tile) {
                const int64_t at = w.offsets ? w.offsets[tile] / args.panel_rows : (tile - w.indptr[g]) * kTileK;
                const int8_t* q = args.x->q + t * args.x->ld + at;
                const int8_t* weights = w.tiles + static_cast<int64_t>(tile) * kTileN * kTileK;
                for (int o = 0; o < kTileN; ++o)
                    for (int j = 0; j < kTileK; ++j) acc[o] += static_cast<int32_t>(q[j]) * weights[o * kTileK + j];
            }
            finish_gemv_scalar(a, t, g, acc);
        }
}

}  // namespace approxrt
