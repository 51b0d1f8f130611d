// What the definitions of sign matching over a cache share.
#pragma once

#include <cmath>

#include "decoder_args.h"
#include "half.h"

namespace approxrt {
namespace {

// Element c of row j, of what is laid out as values are.
inline float element(const CacheHead& cache, const void* rows, const float* scales, int64_t j, int64_t c) {
    const int64_t at = (c / 16 * cache.capacity + j) * 16 + c % 16;
    switch (cache.kind) {
        case CacheKind::kF32:
            return static_cast<const float*>(rows)[at];
        case CacheKind::kF16:
            return float_from_half(static_cast<const uint16_t*>(rows)[at]);
        case CacheKind::kInt8:
            break;
    }
    return static_cast<float>(static_cast<const int8_t*>(rows)[at]) * scales[j];
}

inline void turn(const SignHead& sign, const float* x, int64_t d, const float* centre, float* y) {
    const int64_t ld = round_up(sign.signs, 16);
    for (int64_t o = 0; o < sign.signs; ++o) {
        y[o] = centre ? -centre[o] : 0.0f;
        for (int64_t c = 0; c < d; ++c) y[o] = std::fma(x[c], sign.rotation[c * ld + o], y[o]);
    }
}

}  // namespace
}  // namespace approxrt
