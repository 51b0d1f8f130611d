// The products of int8 and int4 GEMM for AVX-512 VNNI: a token's group of 4 inputs with tiles of kStrips strips.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "args.h"

namespace approxrt {
namespace {

// acc[s][r] += u[r] . w[s], the inputs of MR tokens at x + r * kTileK: one broadcast serves all strips. Accumulators
// are pinned by inline assembly: through _mm512_dpbusd_epi32 in a loop GCC 12 spills the array to the stack on every
// step.
template <int MR, int kStrips>
inline __attribute__((always_inline)) void tile_products(const __m512i (&w)[kStrips], const char* x,
                                                         __m512i (&acc)[kStrips][MR]) {
#pragma GCC unroll 24
    for (int r = 0; r < MR; ++r) {
        int32_t group;
        __builtin_memcpy(&group, x + r * kTileK, 4);
        const __m512i u = _mm512_set1_epi32(group);
#pragma GCC unroll 4
        for (int s = 0; s < kStrips; ++s)
            __asm__("vpdpbusd %[w], %[u], %[acc]" : [acc] "+v"(acc[s][r]) : [w] "v"(w[s]), [u] "v"(u));
    }
}

}  // namespace
}  // namespace approxrt
