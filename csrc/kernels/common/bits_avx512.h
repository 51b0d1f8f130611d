// 512 keys as the bits of a register. Included only by avx512.cpp; see bits_avx2.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "vec_avx512.h"

namespace approxrt {
namespace {

struct Bits {
    static constexpr int kWords = 8;
    __m512i v;
};

inline Bits load_bits(const uint64_t* p) { return {_mm512_loadu_si512(p)}; }
inline void store_bits(uint64_t* p, Bits a) { _mm512_storeu_si512(p, a.v); }
inline Bits no_bits() { return {_mm512_setzero_si512()}; }
inline Bits all_or_none(int64_t mask) { return {_mm512_set1_epi64(mask)}; }
inline Bits all_or_none(const int32_t* mask) { return {_mm512_set1_epi32(*mask)}; }
inline Bits operator^(Bits a, Bits b) { return {_mm512_xor_si512(a.v, b.v)}; }
inline Bits operator&(Bits a, Bits b) { return {_mm512_and_si512(a.v, b.v)}; }
inline Bits operator|(Bits a, Bits b) { return {_mm512_or_si512(a.v, b.v)}; }
inline Bits without(Bits a, Bits b) { return {_mm512_andnot_si512(b.v, a.v)}; }
inline Bits odd(Bits a, Bits b, Bits c) { return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0x96)}; }
inline Bits majority(Bits a, Bits b, Bits c) { return {_mm512_ternarylogic_epi64(a.v, b.v, c.v, 0xE8)}; }

// The sum of each of sixteen vectors.
inline Vec sums_of(const Vec (&x)[16]) {
    __m512 pairs[8], fours[4];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
        const __m512 a = x[2 * i].v, b = x[2 * i + 1].v;
        pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
        fours[i] =
            _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
    }
    const auto fold = [](__m512 a, __m512 b) {
        return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xDD));
    };
    return {fold(fold(fours[0], fours[1]), fold(fours[2], fours[3]))};
}

// Two bytes: the sign bits of 16 floats, the first in the lowest bit.
inline void sign_bytes(const float* x, int n, uint8_t* low, uint8_t* high) {
    const unsigned mask = _mm512_movepi32_mask(_mm512_castps_si512(load_n(x, n).v));
    *low = static_cast<uint8_t>(mask);
    *high = static_cast<uint8_t>(mask >> 8);
}

// Sixteen signs as 0 or -1.
inline void sign_words16(const float* x, int32_t* out) {
    _mm512_storeu_si512(out, _mm512_srai_epi32(_mm512_loadu_si512(x), 31));
}

// Bit b of 64 bytes goes to planes[8 * b]: one word of each of eight planes.
inline void spread_bytes(const uint8_t* bytes, uint64_t* planes) {
    __m512i x = _mm512_loadu_si512(bytes);
    for (int b = 7; b >= 0; --b) {
        planes[8 * b] = _mm512_movepi8_mask(x);
        x = _mm512_add_epi8(x, x);
    }
}

// The `count` lowest set bits.
inline uint64_t lowest_set(uint64_t bits, int count) {
    return count < 64 ? _pdep_u64((1ull << count) - 1, bits) : bits;
}

}  // namespace
}  // namespace approxrt
