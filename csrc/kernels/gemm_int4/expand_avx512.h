// Nibbles of int4 weights to the bytes m * q4, with AVX-512. Included only by avx512vnni.cpp and amx.cpp.
//
// Scaling before the product costs 5 instructions a tile; scaling sums at a group's end would cost 24 multiplies,
// 24 additions, loads and stores a group of 8 tiles. AVX-512 has no product of bytes, but one of 16-bit words
// does two of them at once: with w = 256 q1 + q0 in a word, w * m = 256 (m q1) + m q0, whose low byte borrows
// from the high one when m q0 is negative. Adding 128 before, which |m q0| <= 126 allows, and taking it from
// the low byte alone after (an exclusive or) leaves both exact. The nibbles' own offset of 8 goes with it:
//
//   bytes = ((256 n1 + n0) * m + 128 - (256 * 8 + 8) * m) ^ 128        n = q4 + 8
#pragma once

#include "kernels/common/vec_avx512.h"

#include "args.h"

namespace approxrt {
namespace {

// What turns the nibbles of a group's tiles to bytes: two words an output each.
struct Scales {
    __m512i m, offset;

    explicit Scales(const uint8_t* scales) {
        const __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
        m = _mm512_or_si512(x, _mm512_slli_epi32(x, 16));
        offset = _mm512_sub_epi16(_mm512_set1_epi16(128), _mm512_mullo_epi16(m, _mm512_set1_epi16(0x0808)));
    }
};

inline __attribute__((always_inline)) __m512i expand_tile(const uint8_t* nibbles, const Scales& s) {
    // Outputs 0..7 are the low nibbles, 8..15 the high ones of the same bytes.
    const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    const __m512i twice = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(nibbles)));
    const __m512i n = _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15));
    const __m512i scaled = _mm512_add_epi16(_mm512_mullo_epi16(n, s.m), s.offset);
    return _mm512_xor_si512(scaled, _mm512_set1_epi16(128));
}

// Consecutive tiles of a strip, the first of which begins a group: bytes [tiles][64], 64-byte aligned.
inline void expand_tiles(const uint8_t* nibbles, const uint8_t* scales, int32_t tiles, int8_t* bytes) {
    for (int32_t tile = 0; tile < tiles; tile += kGroupTiles, scales += kTileN) {
        const int32_t end = tiles - tile < kGroupTiles ? tiles : tile + kGroupTiles;
        const Scales s(scales);
        for (int32_t i = tile; i < end; ++i)
            _mm512_store_si512(bytes + i * kTileN * kTileK, expand_tile(nibbles + i * kInt4TileBytes, s));
    }
}

}  // namespace
}  // namespace approxrt
