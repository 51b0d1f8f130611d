// Rotary positions on Vec.
#pragma once

#include "decoder_args.h"

namespace approxrt {
namespace {

inline void rope(const RopeArgs& a) {
    constexpr int W = Vec::kWidth;
    const int32_t half = a.head_dim / 2;
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* cos = a.cos + static_cast<int64_t>(t) * half;
        const float* sin = a.sin + static_cast<int64_t>(t) * half;
        for (int32_t h = 0; h < a.heads; ++h) {
            float* x = a.x + t * a.ldx + static_cast<int64_t>(h) * a.head_dim;
            float* y = x + half;
            for (int32_t i = 0; i < half; i += W) {
                const int n = half - i < W ? half - i : W;
                const Vec c = load_n(cos + i, n), s = load_n(sin + i, n), p = load_n(x + i, n), q = load_n(y + i, n);
                store_n(x + i, sub(mul(p, c), mul(q, s)), n);
                store_n(y + i, add(mul(q, c), mul(p, s)), n);
            }
        }
    }
}

}  // namespace
}  // namespace approxrt
