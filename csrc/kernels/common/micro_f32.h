// The register block of all float32 products: C[MR][16] = sum_k A[r][k] B[k][0..15],
// with B packed: 16 contiguous values a k; or of kStrips such B, `strip` values apart.
//
// AVX2: 6 x 16 = 12 accumulators + 2 vectors of B + 1 broadcast = 15 of 16 registers; 12 FMAs a step
// hide the latency of 4 cycles at 2 a cycle, for 8 loads. AVX-512: 8 x 16, one zmm a row, or with several strips 24
// accumulators that share broadcasts: a processor with two FMAs a cycle cannot load a broadcast for each. k ascends and
// every C element has one accumulator, so a row's result does not depend on how many rows share its block.
#pragma once

#include <cstdint>

namespace approxrt {
namespace {

constexpr int kVecs = 16 / Vec::kWidth;  // vectors in a strip of 16 columns

template <int MR, int kStrips>
inline __attribute__((always_inline)) void micro_f32_strips(const float* a, int64_t lda, const float* b, int64_t strip,
                                                            int64_t k, Vec (&c)[MR][kStrips * kVecs]) {
    constexpr int kCount = kStrips * kVecs;
#pragma GCC unroll 12
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) c[r][v] = zero();
    for (int64_t i = 0; i < k; ++i) {
        Vec bv[kCount];
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) bv[v] = load(b + v / kVecs * strip + i * 16 + v % kVecs * Vec::kWidth);
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r) {
            const Vec x = broadcast(a + r * lda + i);
#pragma GCC unroll 4
            for (int v = 0; v < kCount; ++v) c[r][v] = fma(x, bv[v], c[r][v]);
        }
    }
}

template <int MR>
inline __attribute__((always_inline)) void micro_f32(const float* a, int64_t lda, const float* b, int64_t k,
                                                     Vec (&c)[MR][kVecs]) {
    micro_f32_strips<MR, 1>(a, lda, b, 0, k, c);
}

}  // namespace
}  // namespace approxrt
