// Layer normalisation on Vec: two passes over a row that stays in L1.
#pragma once

#include "args.h"

namespace approxrt {
namespace {

inline void layer_norm(const LayerNormArgs& a) {
    constexpr int W = Vec::kWidth;
    const int32_t whole = a.width / W * W, rest = a.width - whole;
    const float inv_width = 1.0f / static_cast<float>(a.width);
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        float* y = a.y + t * a.ldy;
        Vec sum = zero();
        for (int32_t i = 0; i < whole; i += W) sum = add(sum, load(x + i));
        if (rest) sum = add(sum, load_n(x + whole, rest));
        const Vec mean = set1(reduce_add(sum) * inv_width);
        Vec squares = zero();
        for (int32_t i = 0; i < whole; i += W) {
            const Vec d = sub(load(x + i), mean);
            squares = fma(d, d, squares);
        }
        if (rest) {
            const Vec d = keep_n(sub(load_n(x + whole, rest), mean), zero(), rest);
            squares = fma(d, d, squares);
        }
        const Vec inv = set1(1.0f / __builtin_sqrtf(reduce_add(squares) * inv_width + a.eps));
        for (int32_t i = 0; i < whole; i += W)
            store(y + i, fma(mul(sub(load(x + i), mean), inv), load(a.gamma + i), load(a.beta + i)));
        if (rest)
            store_n(y + whole,
                    fma(mul(sub(load_n(x + whole, rest), mean), inv), load_n(a.gamma + whole, rest),
                        load_n(a.beta + whole, rest)),
                    rest);
    }
}

}  // namespace
}  // namespace approxrt
