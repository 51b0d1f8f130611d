// Softmax numerators on Vec. The lane in which an element is summed depends on its index alone.
#pragma once

#include "args.h"

namespace approxrt {
namespace {

inline void softmax(const SoftmaxArgs& a) {
    constexpr int W = Vec::kWidth;
    const int32_t whole = a.n / W * W, rest = a.n - whole;
    const Vec lowest = set1(-3.4e38f), scale = set1(a.scale);
    for (int32_t t = 0; t < a.rows; ++t) {
        float* x = a.x + t * a.ldx;
        Vec highest = lowest;
        for (int32_t i = 0; i < whole; i += W) highest = max(highest, load(x + i));
        if (rest) highest = max(highest, keep_n(load_n(x + whole, rest), lowest, rest));
        const Vec shift = set1(reduce_max(highest));
        Vec sum = zero();
        for (int32_t i = 0; i < whole; i += W) {
            const Vec e = exp(mul(sub(load(x + i), shift), scale));
            store(x + i, e);
            sum = add(sum, e);
        }
        if (rest) {
            const Vec e = keep_n(exp(mul(sub(load_n(x + whole, rest), shift), scale)), zero(), rest);
            store_n(x + whole, e, rest);
            sum = add(sum, e);
        }
        a.inv_sum[t] = 1.0f / reduce_add(sum);
    }
}

}  // namespace
}  // namespace approxrt
