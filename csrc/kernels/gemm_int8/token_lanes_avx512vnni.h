// Block-sparse int8 products with tokens in the lanes of a register, for CPUs of two 512-bit products a cycle.
//
//   acc[o][token 0..15] += u[token, k..k+3] . q[o, k..k+3]
//
// With outputs in lanes (avx512vnni.cpp) a sparse matrix needs a broadcast for every product, since each
// strip has tiles of other groups, and such CPUs load about 1.1 broadcasts a cycle (Ice Lake). Here the 16 tokens of a
// group are one load from the panel, and an output's 4 weights, broadcast from the tile, serve all tokens: 12 loads for
// 24 products. Sums come out with tokens in lanes and are turned on the way to the epilogue, about 40 cycles for 16 x
// 16; where one product a cycle is all there is, nothing pays for that.
//
// Two panels of 24 tokens are three registers, the middle one the end of one panel and the beginning of the next; with
// 8 outputs at a time they are 24 sums. Fewer tokens than kLeastLanes are left to the other way.
#pragma once

#include "kernels/common/vec_avx512.h"

#include "args.h"
#include "kernels/common/epilogue.h"

namespace approxrt {
namespace {

constexpr int kLaneTokens = 16, kLanes = 3, kLaneOutputs = 8;
constexpr int kLeastLanes = 36;  // below, a multiplication of 48 tokens takes longer than one of as many as there are

// sums [16][48] (outputs, tokens), corrected, of one strip and the tokens of `panel` and of `next` behind it.
inline void strip_in_lanes(const PackedInt8& w, int32_t strip, const char* panel, const char* next, int32_t* sums) {
    const int32_t begin = w.indptr[strip], count = w.indptr[strip + 1] - begin;
    const uint32_t* offsets = w.offsets + begin;
    const int32_t* correction = w.correction + static_cast<int64_t>(strip) * kTileN;
    for (int first = 0; first < kTileN; first += kLaneOutputs) {
        const int8_t* tile = w.tiles + begin * int64_t{kTileN * kTileK} + first * kTileK;
        __m512i acc[kLanes][kLaneOutputs];
#pragma GCC unroll 3
        for (int v = 0; v < kLanes; ++v)
#pragma GCC unroll 8
            for (int o = 0; o < kLaneOutputs; ++o) acc[v][o] = _mm512_set1_epi32(-correction[first + o]);
        for (int32_t i = 0; i < count; ++i, tile += kTileN * kTileK) {
            const char *x = panel + offsets[i], *y = next + offsets[i];
            const __m256i end = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 64));
            const __m256i start = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(y));
            const __m512i u[kLanes] = {_mm512_loadu_si512(x), _mm512_inserti64x4(_mm512_castsi256_si512(end), start, 1),
                                       _mm512_loadu_si512(y + 32)};
#pragma GCC unroll 8
            for (int o = 0; o < kLaneOutputs; ++o) {
                int32_t weights;
                __builtin_memcpy(&weights, tile + o * kTileK, 4);
                const __m512i q = _mm512_set1_epi32(weights);
                // As in common/products_avx512vnni.h: intrinsics would spill.
#pragma GCC unroll 3
                for (int v = 0; v < kLanes; ++v)
                    __asm__("vpdpbusd %[q], %[u], %[acc]" : [acc] "+v"(acc[v][o]) : [q] "v"(q), [u] "v"(u[v]));
            }
        }
#pragma GCC unroll 3
        for (int v = 0; v < kLanes; ++v)
#pragma GCC unroll 8
            for (int o = 0; o < kLaneOutputs; ++o)
                _mm512_store_si512(sums + ((first + o) * kLanes + v) * kLaneTokens, acc[v][o]);
    }
}

// to [tokens][16] <- from [16][ld]: a square of 16 x 16. Pieces of four are put together by loads, so that only half of
// the work is left to the one port that shuffles.
inline void turn16(const int32_t* from, int64_t ld, int32_t* to) {
#pragma GCC unroll 4
    for (int column = 0; column < kLaneTokens; column += 4) {
        __m512i row[4];
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            const auto piece = [&](int lane) {
                return _mm_load_si128(reinterpret_cast<const __m128i*>(from + (r + 4 * lane) * ld + column));
            };
            row[r] = _mm512_castsi128_si512(piece(0));
            row[r] = _mm512_mask_broadcast_i32x4(row[r], 0x00f0, piece(1));
            row[r] = _mm512_mask_broadcast_i32x4(row[r], 0x0f00, piece(2));
            row[r] = _mm512_mask_broadcast_i32x4(row[r], 0xf000, piece(3));
        }
        const __m512i a = _mm512_unpacklo_epi32(row[0], row[1]), b = _mm512_unpackhi_epi32(row[0], row[1]);
        const __m512i c = _mm512_unpacklo_epi32(row[2], row[3]), d = _mm512_unpackhi_epi32(row[2], row[3]);
        _mm512_store_si512(to + (column + 0) * kTileN, _mm512_unpacklo_epi64(a, c));
        _mm512_store_si512(to + (column + 1) * kTileN, _mm512_unpackhi_epi64(a, c));
        _mm512_store_si512(to + (column + 2) * kTileN, _mm512_unpacklo_epi64(b, d));
        _mm512_store_si512(to + (column + 3) * kTileN, _mm512_unpackhi_epi64(b, d));
    }
}

// Tokens row .. row + rows - 1, at least kLeastLanes and at most 48 of them, in two panels side by side.
inline void strips_in_lanes(const GemmInt8Args& a, int32_t row, int32_t rows, const char* panel, const char* next) {
    alignas(64) int32_t sums[kTileN * kLanes * kLaneTokens], turned[kLanes * kLaneTokens * kTileN];
    for (int32_t strip = a.strip_begin; strip < a.strip_end; ++strip) {
        strip_in_lanes(*a.w, strip, panel, next, sums);
        for (int v = 0; v < kLanes; ++v)
            turn16(sums + v * kLaneTokens, kLanes * kLaneTokens, turned + v * kLaneTokens * kTileN);
        finish_int8(a, row, rows, strip, turned);
    }
}

}  // namespace
}  // namespace approxrt
