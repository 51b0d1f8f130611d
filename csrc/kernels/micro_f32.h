// The register block of all float32 products: C[MR][16] = sum_k A[r][k] B[k][0..15],
// with B packed: 16 contiguous values a k.
//
// AVX2: 6 x 16 = 12 accumulators + 2 vectors of B + 1 broadcast = 15 of 16 registers; 12 FMAs a step
// hide the latency of 4 cycles at 2 a cycle, for 8 loads. AVX-512: 8 x 16, one zmm a row.
// k ascends and every C element has one accumulator, so a row's result does not depend on how many
// rows share its block.
#pragma once

#include <cstdint>

namespace approxrt {
namespace {

constexpr int kVecs = 16 / Vec::kWidth;  // vectors in a strip of 16 columns

template <int MR>
inline __attribute__((always_inline)) void micro_f32(const float* a, int64_t lda, const float* b, int64_t k,
                                                     Vec (&c)[MR][kVecs]) {
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) c[r][v] = zero();
    for (int64_t i = 0; i < k; ++i) {
        Vec bv[kVecs];
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) bv[v] = load(b + i * 16 + v * Vec::kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) {
            const Vec x = broadcast(a + r * lda + i);
#pragma GCC unroll 2
            for (int v = 0; v < kVecs; ++v) c[r][v] = fma(x, bv[v], c[r][v]);
        }
    }
}

}  // namespace
}  // namespace approxrt
