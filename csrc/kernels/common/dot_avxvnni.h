// vpdpbusd for register blocks of 16 ymm. Included only by avxvnni.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace approxrt {
namespace {

// One token, 4 inputs, 16 outputs: acc += u . w with unsigned u, signed w. In assembly because GCC 12 otherwise spills
// the accumulators of a register block.
inline __attribute__((always_inline)) void dot_bytes(const char* x, __m256i w0, __m256i w1, __m256i (&acc)[2]) {
    __m256i u;
    __asm__(
        "vpbroadcastd %[x], %[u]\n\t"
        "%{vex%} vpdpbusd %[w0], %[u], %[a0]\n\t"
        "%{vex%} vpdpbusd %[w1], %[u], %[a1]"
        : [a0] "+x"(acc[0]), [a1] "+x"(acc[1]), [u] "=&x"(u)
        : [w0] "x"(w0), [w1] "x"(w1), [x] "m"(*reinterpret_cast<const int32_t*>(x)));
}

}  // namespace
}  // namespace approxrt
