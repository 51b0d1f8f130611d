// What happens to a register block of sums before it is stored: scale, bias, activation, residual.
//
// A kernel parks its accumulators in a small buffer (L1) and one loop finishes them. Unrolled over the
// block instead, five activations times 24 rows would bury the product loop in code and spills, for a
// gain of one store and one load a vector.
#pragma once

#include "../args.h"

namespace approxrt {
namespace {

// sums [rows][16] of tokens row.. and strip `strip`, corrected already.
inline void finish_int8(const GemmInt8Args& a, int32_t row, int32_t rows, int32_t strip, const int32_t* sums) {
    const PackedInt8& w = *a.w;
    const int64_t column = static_cast<int64_t>(strip) * kTileN;
    for (int32_t r = 0; r < rows; ++r) {
        const int64_t t = row + r;
        if (a.accumulators)
            for (int o = 0; o < kTileN; ++o)
                a.accumulators[t * w.strips * kTileN + column + o] = sums[r * kTileN + o];
        const Vec s = set1(a.act_scales[t]);
        for (int o = 0; o < kTileN; o += Vec::kWidth) {
            Vec y = fma(load_i32(sums + r * kTileN + o), mul(s, load(w.scale + column + o)), load(w.bias + column + o));
            y = activate(y, a.act);
            if (a.residual) y = add(y, load(a.residual + t * a.ldr + column + o));
            store(a.y + t * a.ldy + column + o, y);
        }
    }
}

// sums [rows][16], bias not yet added.
inline void finish_f32(const GemmF32Args& a, int32_t row, int32_t rows, int32_t strip, const float* sums) {
    const int64_t column = static_cast<int64_t>(strip) * kTileN;
    for (int32_t r = 0; r < rows; ++r) {
        const int64_t t = row + r;
        for (int o = 0; o < kTileN; o += Vec::kWidth) {
            Vec y = activate(add(load(sums + r * kTileN + o), load(a.w->bias + column + o)), a.act);
            if (a.residual) y = add(y, load(a.residual + t * a.ldr + column + o));
            store(a.y + t * a.ldy + column + o, y);
        }
    }
}

}  // namespace
}  // namespace approxrt
