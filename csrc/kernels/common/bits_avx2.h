// 256 keys as the bits of a register, and what sign attention needs beside. Included only by avx2.cpp.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "vec_avx2.h"

namespace approxrt {
namespace {

struct Bits {
    static constexpr int kWords = 4;
    __m256i v;
};

inline Bits load_bits(const uint64_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
inline void store_bits(uint64_t* p, Bits a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.v); }
inline Bits no_bits() { return {_mm256_setzero_si256()}; }
inline Bits all_or_none(int64_t mask) { return {_mm256_set1_epi64x(mask)}; }
inline Bits all_or_none(const int32_t* mask) { return {_mm256_set1_epi32(*mask)}; }
inline Bits operator^(Bits a, Bits b) { return {_mm256_xor_si256(a.v, b.v)}; }
inline Bits operator&(Bits a, Bits b) { return {_mm256_and_si256(a.v, b.v)}; }
inline Bits operator|(Bits a, Bits b) { return {_mm256_or_si256(a.v, b.v)}; }
inline Bits without(Bits a, Bits b) { return {_mm256_andnot_si256(b.v, a.v)}; }
inline Bits odd(Bits a, Bits b, Bits c) { return a ^ b ^ c; }
inline Bits majority(Bits a, Bits b, Bits c) { return (a & b) | ((a ^ b) & c); }

// The sum of each of eight vectors.
inline Vec sums_of(const Vec (&x)[8]) {
    const auto four = [&](int i) {
        return _mm256_hadd_ps(_mm256_hadd_ps(x[i].v, x[i + 1].v), _mm256_hadd_ps(x[i + 2].v, x[i + 3].v));
    };
    const __m256 a = four(0), b = four(4);
    return {_mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31))};
}

// Two bytes: the sign bits of 16 floats, the first in the lowest bit; 0 from the n-th on.
inline void sign_bytes(const float* x, int n, uint8_t* low, uint8_t* high) {
    *low = static_cast<uint8_t>(_mm256_movemask_ps(n >= 8 ? load(x).v : load_n(x, n).v));
    *high = static_cast<uint8_t>(n <= 8 ? 0 : _mm256_movemask_ps(n >= 16 ? load(x + 8).v : load_n(x + 8, n - 8).v));
}

// Sixteen signs as 0 or -1.
inline void sign_words16(const float* x, int32_t* out) {
    for (int i = 0; i < 16; i += 8) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + i));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), _mm256_srai_epi32(bits, 31));
    }
}

// Bit b of 64 bytes goes to planes[8 * b]: one word of each of eight planes.
inline void spread_bytes(const uint8_t* bytes, uint64_t* planes) {
    __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
    __m256i y = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32));
    for (int b = 7; b >= 0; --b) {
        planes[8 * b] = static_cast<uint32_t>(_mm256_movemask_epi8(x)) |
                        static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(y))) << 32;
        x = _mm256_add_epi8(x, x);
        y = _mm256_add_epi8(y, y);
    }
}

// The `count` lowest set bits. No pdep: it takes hundreds of cycles on some CPUs of this level.
inline uint64_t lowest_set(uint64_t bits, int count) {
    uint64_t others = bits;
    for (; count > 0; --count) others &= others - 1;
    return bits ^ others;
}

}  // namespace
}  // namespace approxrt
