// RMS normalisation on Vec: two passes over a row that stays in L1.
#pragma once

#include "decoder_args.h"

namespace approxrt {
namespace {

inline void rms_norm(const RmsNormArgs& a) {
    constexpr int W = Vec::kWidth;
    const int32_t whole = a.width / W * W, rest = a.width - whole;
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        float* y = a.y + t * a.ldy;
        Vec squares = zero();
        for (int32_t i = 0; i < whole; i += W) squares = fma(load(x + i), load(x + i), squares);
        if (rest) squares = fma(load_n(x + whole, rest), load_n(x + whole, rest), squares);
        const Vec inv =
            set1(1.0f / __builtin_sqrtf(reduce_add(squares) * (1.0f / static_cast<float>(a.width)) + a.eps));
        for (int32_t i = 0; i < whole; i += W) store(y + i, mul(mul(load(x + i), inv), load(a.gamma + i)));
        if (rest) store_n(y + whole, mul(mul(load_n(x + whole, rest), inv), load_n(a.gamma + whole, rest)), rest);
    }
}

}  // namespace
}  // namespace approxrt
