// What the definitions of quantisation share: a maximum that no NaN is lost in, and integers that every float has.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "args.h"

namespace approxrt {
namespace {

// The bits of |x|: they order as the values do, and NaN lies above infinity.
inline int32_t magnitude(float x) { return std::bit_cast<int32_t>(x) & 0x7fffffff; }

// The bits of max|x|, of NaN if one is.
inline int32_t peak_of(const float* x, int64_t n) {
    int32_t peak = 0;
    for (int64_t i = 0; i < n; ++i) peak = magnitude(x[i]) > peak ? magnitude(x[i]) : peak;
    return peak;
}

// False for what becomes zeros. A row with a NaN is live: its scale is NaN, and so is all that is made of it.
inline bool is_live(float peak) { return !(peak <= kQuantizeFloor); }

// x rounded half to even, in [-127, 127]; -127 for NaN, which a conversion would leave undefined.
inline int8_t quantized(float x) {
    const float r = std::nearbyintf(x);
    return static_cast<int8_t>(r > 127.0f ? 127.0f : (r >= -127.0f ? r : -127.0f));
}

}  // namespace
}  // namespace approxrt
