// Re-laying rows of 16-bit integers as pairs, with AVX2 (the AVX-512 kernels use it too).
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace approxrt {
namespace {

// 8 rows of 8 pairs -> 8 columns of 8 pairs: to[c * 32 + 2 * r ..] = rows[r * ld + 2 * c ..], half a strip of 16.
inline void transpose_pairs(const int16_t* rows, int64_t ld, int16_t* to) {
    const auto row = [&](int r) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows + r * ld)); };
    __m256i t[8], u[8];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        t[2 * i] = _mm256_unpacklo_epi32(row(2 * i), row(2 * i + 1));
        t[2 * i + 1] = _mm256_unpackhi_epi32(row(2 * i), row(2 * i + 1));
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
        u[4 * i] = _mm256_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 1] = _mm256_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        u[4 * i + 2] = _mm256_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        u[4 * i + 3] = _mm256_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    const auto put = [&](int c, __m256i x) { _mm256_store_si256(reinterpret_cast<__m256i*>(to + c * 32), x); };
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
        put(c, _mm256_permute2x128_si256(u[c], u[c + 4], 0x20));
        put(c + 4, _mm256_permute2x128_si256(u[c], u[c + 4], 0x31));
    }
}

// to[2 * i] = first[i], to[2 * i + 1] = second[i] for 16 values of each.
inline void interleave(const int16_t* first, const int16_t* second, int16_t* to) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(first));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(second));
    const __m256i low = _mm256_unpacklo_epi16(a, b), high = _mm256_unpackhi_epi16(a, b);
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_permute2x128_si256(low, high, 0x20));
    _mm256_store_si256(reinterpret_cast<__m256i*>(to + 16), _mm256_permute2x128_si256(low, high, 0x31));
}

}  // namespace
}  // namespace approxrt
