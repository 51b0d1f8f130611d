// What signs are taken of: keys and queries times a head's rotation (decoder_args.h, SignHead).
#pragma once

#include "cache_elements.h"

namespace approxrt {
namespace {

// y <- R x (- centre), both in whole strips; every element is one chain of additions, so that its sign is the same
// everywhere. Up to four strips go side by side.
template <int kStrips>
inline void turn_strips(const SignHead& sign, const float* x, int32_t d, int32_t first, const float* centre, float* y) {
    const int64_t ld = round_up(sign.signs, 16);
    Vec sum[kStrips * kVecs16];
#pragma GCC unroll 16
    for (int v = 0; v < kStrips * kVecs16; ++v)
        sum[v] = centre ? sub(zero(), load(centre + first + v * Vec::kWidth)) : zero();
    const float* column = sign.rotation + first;
    for (int32_t c = 0; c < d; ++c, column += ld) {
        const Vec one = broadcast(x + c);
#pragma GCC unroll 16
        for (int v = 0; v < kStrips * kVecs16; ++v) sum[v] = fma(one, load(column + v * Vec::kWidth), sum[v]);
    }
#pragma GCC unroll 16
    for (int v = 0; v < kStrips * kVecs16; ++v) store(y + first + v * Vec::kWidth, sum[v]);
}

inline void turn(const SignHead& sign, const float* x, int32_t d, const float* centre, float* y) {
    int32_t first = 0;
    for (; first + 64 <= sign.signs; first += 64) turn_strips<4>(sign, x, d, first, centre, y);
    for (; first < sign.signs; first += 16) turn_strips<1>(sign, x, d, first, centre, y);
}

}  // namespace
}  // namespace approxrt
