// IEEE half precision without instructions for it.
#pragma once

#include <cstdint>
#include <cstring>

namespace approxrt {

constexpr float kLargestHalf = 65504.0f;  // larger values are stored as this one

// Nearest, ties to even; NaN stays NaN.
inline uint16_t half_from_float(float x) {
    x = x > kLargestHalf ? kLargestHalf : x < -kLargestHalf ? -kLargestHalf : x;
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = bits >> 16 & 0x8000u;
    bits &= 0x7fffffffu;
    if (bits > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (bits < 0x38800000u) {  // below 2^-14: a multiple of 2^-24
        float magnitude;
        std::memcpy(&magnitude, &bits, 4);
        const float shifted = magnitude + 0.5f;  // the last bit of a float in [0.5, 1) is 2^-24
        uint32_t rounded;
        std::memcpy(&rounded, &shifted, 4);
        return static_cast<uint16_t>(sign | (rounded - 0x3f000000u));
    }
    const uint32_t rounded = bits + 0xfffu + (bits >> 13 & 1);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

inline float float_from_half(uint16_t half) {
    const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    float x;
    if (magnitude < 0x400u) {
        x = static_cast<float>(magnitude) * 5.9604644775390625e-8f;  // 2^-24
    } else {
        const uint32_t bits = magnitude < 0x7c00u ? (magnitude << 13) + 0x38000000u : magnitude << 13 | 0x7f800000u;
        std::memcpy(&x, &bits, 4);
    }
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits |= sign;
    std::memcpy(&x, &bits, 4);
    return x;
}

}  // namespace approxrt
