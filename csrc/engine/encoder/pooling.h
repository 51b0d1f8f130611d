// One vector of a sequence's hidden states, as sentence-transformers' Pooling has it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace approxrt {

// kMeanSqrt: the sum over the root of the number of tokens. kWeightedMean: token t weighs t + 1.
enum class Pooling { kCls, kMean, kMax, kLast, kWeightedMean, kMeanSqrt };

// out[0 .. width-1] from n >= 1 rows of x. Rows are added in order: a result depends on nothing but the sequence.
inline void pool_rows(Pooling pooling, const float* x, int64_t ldx, int32_t n, int32_t width, float* out) {
    if (pooling == Pooling::kCls || pooling == Pooling::kLast) {
        std::memcpy(out, x + (pooling == Pooling::kLast ? n - 1 : 0) * ldx, sizeof(float) * width);
        return;
    }
    if (pooling == Pooling::kMax) {
        std::memcpy(out, x, sizeof(float) * width);
        // A NaN among the rows stays: it compares as neither.
        for (int32_t t = 1; t < n; ++t)
            for (int32_t j = 0; j < width; ++j)
                if (!(x[t * ldx + j] <= out[j]) && !std::isnan(out[j])) out[j] = x[t * ldx + j];
        return;
    }
    std::memset(out, 0, sizeof(float) * width);
    if (pooling == Pooling::kWeightedMean) {
        for (int32_t t = 0; t < n; ++t)
            for (int32_t j = 0; j < width; ++j) out[j] += static_cast<float>(t + 1) * x[t * ldx + j];
    } else {
        for (int32_t t = 0; t < n; ++t)
            for (int32_t j = 0; j < width; ++j) out[j] += x[t * ldx + j];
    }
    const auto count = static_cast<float>(n);
    const float weight = pooling == Pooling::kMean           ? count
                         : pooling == Pooling::kWeightedMean ? 0.5f * count * (count + 1.0f)
                                                             : std::sqrt(count);
    const float inverse = 1.0f / weight;
    for (int32_t j = 0; j < width; ++j) out[j] *= inverse;
}

// Rows of length 1, in place; zeros stay.
inline void normalize_rows(float* x, int64_t ldx, int32_t rows, int32_t width) {
    for (int32_t r = 0; r < rows; ++r, x += ldx) {
        float sum = 0.0f;
        for (int32_t j = 0; j < width; ++j) sum += x[j] * x[j];
        const float inverse = 1.0f / std::max(std::sqrt(sum), 1e-12f);
        for (int32_t j = 0; j < width; ++j) x[j] *= inverse;
    }
}

}  // namespace approxrt
