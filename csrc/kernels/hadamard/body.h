// Hadamard transforms of blocks of a row on Vec. Butterflies within a vector: lanes and their partners change places,
// and the sign of the lane decides whether it is a sum or a difference; both are single roundings, as in the
// definition.
#pragma once

#include "decoder_args.h"

namespace approxrt {
namespace {

// +1 in lanes without bit h, -1 in those with it.
inline Vec butterfly_signs(int h) {
    alignas(64) float signs[16];
    for (int i = 0; i < Vec::kWidth; ++i) signs[i] = i & h ? -1.0f : 1.0f;
    return load(signs);
}

template <int kVectors>
inline void hadamard_blocks(const HadamardArgs& a) {
    constexpr int W = Vec::kWidth;
    const Vec scale = set1(1.0f / __builtin_sqrtf(static_cast<float>(a.size)));
    const Vec one = butterfly_signs(1), two = butterfly_signs(2), four = butterfly_signs(4), eight = butterfly_signs(8);
    for (int32_t t = 0; t < a.rows; ++t)
        for (int32_t begin = 0; begin < a.width; begin += kVectors * W) {
            const float* x = a.x + t * a.ldx + begin;
            float* y = a.y + t * a.ldy + begin;
            Vec v[kVectors];
#pragma GCC unroll 16
            for (int i = 0; i < kVectors; ++i) {
                v[i] = load(x + i * W);
                v[i] = fma(v[i], one, swap_lanes<1>(v[i]));
                v[i] = fma(v[i], two, swap_lanes<2>(v[i]));
                v[i] = fma(v[i], four, swap_lanes<4>(v[i]));
                if (W > 8) v[i] = fma(v[i], eight, swap_lanes<W / 2>(v[i]));
            }
#pragma GCC unroll 4
            for (int h = 1; h < kVectors; h *= 2)
#pragma GCC unroll 16
                for (int i = 0; i < kVectors; ++i)
                    if (!(i & h)) {
                        const Vec first = v[i], second = v[i + h];
                        v[i] = add(first, second);
                        v[i + h] = sub(first, second);
                    }
#pragma GCC unroll 16
            for (int i = 0; i < kVectors; ++i) store(y + i * W, mul(v[i], scale));
        }
}

inline void hadamard(const HadamardArgs& a) {
    switch (a.size / Vec::kWidth) {
        case 1:
            return hadamard_blocks<1>(a);
        case 2:
            return hadamard_blocks<2>(a);
        case 4:
            return hadamard_blocks<4>(a);
        case 8:
            return hadamard_blocks<8>(a);
        case 16:
            return hadamard_blocks<16>(a);
    }
}

}  // namespace
}  // namespace approxrt
