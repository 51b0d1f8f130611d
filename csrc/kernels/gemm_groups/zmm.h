// Register blocks of the GEMM of group-scaled weights in zmm: up to 12 tokens x 16 outputs (pairs.h has
// those of 12 x 32). Included only by avx512*.cpp.
//
//   acc[t]  = sum over 8 tiles of q . a        8 dot products a token, exact integers
//   sum[t] += float(acc << k) * d              a shift, a conversion and two multiply-adds a token and group
//   sum[t] += float(2^k sum of a) * m
//
// q, unsigned, is the register operand and a, signed, a broadcast from memory. Registers: 12 acc, 12 sums, two tiles of
// q, d and m. Of a group's instructions those that multiply are 8 + 2 a token; where shift, conversion and unpacking go
// to other pipes, 8 / 10 of the speed of a plain int8 product is the limit. A few tokens and an odd last strip run here
// on AVX-512 VNNI too.
#pragma once

#include "kernels/common/vec_avx512.h"

#include "blocks.h"

namespace approxrt {
namespace {

constexpr int kGroupsRows = 12;
// A few tokens pass by every weight once, and what memory gives is the limit. The hardware fetches ahead within a page
// of 4 KB only: more than that ahead, g4 and g6 read 1.15 to 1.25 times as fast (Ice Lake), with 1 KB 1.05 to 1.1
// times. Behind a matrix lies the next one (AlignedBuffer::weights).
constexpr int kFetchAhead = 5120;

// Tile c of a group, 0 .. 7.
inline __attribute__((always_inline)) __m512i tile_of(const uint8_t* w, int c, G4) {
    const __m512i both = _mm512_load_si512(w + 64 * (c / 2));
    return _mm512_and_si512(c % 2 ? _mm512_srli_epi16(both, 4) : both, _mm512_set1_epi8(15));
}
inline __attribute__((always_inline)) __m512i tile_of(const uint8_t* w, int c, G6) {
    const __m512i both = _mm512_loadu_si512(w + 64 * (c / 2)), high = _mm512_loadu_si512(w + 256 + 64 * (c / 4));
    const __m512i low = _mm512_and_si512(c % 2 ? _mm512_srli_epi16(both, 4) : both, _mm512_set1_epi8(15));
    // Bits 2 h and 2 h + 1 to 4 and 5.
    const __m512i there = c % 4 < 2 ? _mm512_slli_epi16(high, 4 - c % 4 * 2) : _mm512_srli_epi16(high, c % 4 * 2 - 4);
    return _mm512_or_si512(low, _mm512_and_si512(there, _mm512_set1_epi8(0x30)));
}
inline __attribute__((always_inline)) __m512i tile_of(const uint8_t* w, int c, G8) {
    return _mm512_loadu_si512(w + 64 * c);
}

// acc[t] = sum of q . a over a group. Level: dot(q, a, acc) for 4 inputs of a token.
template <class Format, class Level, int T, int kMr>
inline __attribute__((always_inline)) void group_products(const uint8_t* w, const char* x, __m512i (&acc)[T]) {
    if constexpr (Format::kBits <= Level::kBits) {
#pragma GCC unroll 12
        for (int r = 0; r < T; ++r) acc[r] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
            const __m512i q = tile_of(w, c, Format{});
#pragma GCC unroll 12
            for (int r = 0; r < T; ++r) Level::dot(q, x + (c * kMr + r) * kTileK, acc[r]);
        }
#pragma GCC unroll 12
        for (int r = 0; r < T; ++r) acc[r] = Level::sums(acc[r]);
    } else {
        // q = 16 high + low, one after the other.
        const __m512i low = _mm512_set1_epi8(15);
        __m512i half[T];
#pragma GCC unroll 12
        for (int r = 0; r < T; ++r) half[r] = acc[r] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
            const __m512i q = _mm512_and_si512(_mm512_srli_epi16(tile_of(w, c, Format{}), 4), low);
#pragma GCC unroll 12
            for (int r = 0; r < T; ++r) Level::dot(q, x + (c * kMr + r) * kTileK, half[r]);
        }
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
            const __m512i q = _mm512_and_si512(tile_of(w, c, Format{}), low);
#pragma GCC unroll 12
            for (int r = 0; r < T; ++r) Level::dot(q, x + (c * kMr + r) * kTileK, acc[r]);
        }
#pragma GCC unroll 12
        for (int r = 0; r < T; ++r)
            acc[r] = _mm512_add_epi32(_mm512_slli_epi32(Level::sums(half[r]), 4), Level::sums(acc[r]));
    }
}

// kMr: the panels' tokens at compile time.
template <class Format, class Level, int T, int kMr>
inline void groups_block(const GroupsBlock& b) {
    static_assert(T <= kGroupsRows && T <= kMr, "what registers hold");
    const uint8_t* w = b.w;
    const char* x = b.x;
    __m512 sum[T];
#pragma GCC unroll 12
    for (int r = 0; r < T; ++r) sum[r] = _mm512_setzero_ps();
    for (int32_t g = 0; g < b.groups; ++g, w += Format::kBytes, x += kMr * kGroupTokenBytes) {
        if constexpr (kMr <= kGemvTokens) {
#pragma GCC unroll 9
            for (int line = 0; line < (Format::kBytes + 63) / 64; ++line)
                _mm_prefetch(w + kFetchAhead + line * 64, _MM_HINT_T0);
        }
        __m512i acc[T];
        group_products<Format, Level, T, kMr>(w, x, acc);
        const auto* halves = reinterpret_cast<const __m256i*>(w + Format::kScales);
        const __m512 d = _mm512_cvtph_ps(_mm256_load_si256(halves));
        __m512 m;
        if constexpr (Format::kBits == 4) {
            m = _mm512_cvtph_ps(_mm256_load_si256(halves + 1));
        } else {
            m = _mm512_mul_ps(d, _mm512_set1_ps(-static_cast<float>(1 << (Format::kBits - 1))));
        }
        // Of the block's own tokens: x is 4 bytes a token further in these, too.
        const auto* shifts = reinterpret_cast<const int32_t*>(x + kGroupWeights * kMr);
        const auto* inputs = reinterpret_cast<const float*>(x + (kGroupWeights + 4) * kMr);
#pragma GCC unroll 12
        for (int r = 0; r < T; ++r) {
            const __m512i shifted = _mm512_sllv_epi32(acc[r], _mm512_set1_epi32(shifts[r]));
            sum[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(shifted), d, sum[r]);
            sum[r] = _mm512_fmadd_ps(_mm512_set1_ps(inputs[r]), m, sum[r]);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < T; ++r) _mm512_store_ps(b.sums + r * kTileN, sum[r]);
}

// kMr: of the level's own panels.
template <class Level, int kMr>
struct GroupsZmm {
    static_assert(kMr > kGemvTokens, "mr tells whose panels these are");

    template <class Format>
    struct Of {
        template <int T>
        struct Panels {
            static void run(const GroupsBlock& b) { groups_block<Format, Level, T, kMr>(b); }
        };
        template <int T>
        struct Few {
            static void run(const GroupsBlock& b) { groups_block<Format, Level, T, T>(b); }
        };
        static void run(const GemmGroupsArgs& a) {
            if (a.mr == kMr) {
                gemm_groups_blocks<kGroupsRows, Panels>(a);
            } else {
                gemm_groups_blocks<kGemvTokens, Few>(a);
            }
        }
    };

    static void run(const GemmGroupsArgs& a) {
        if (a.w->bits == 4) {
            Of<G4>::run(a);
        } else if (a.w->bits == 6) {
            Of<G6>::run(a);
        } else {
            Of<G8>::run(a);
        }
    }
};

}  // namespace
}  // namespace approxrt
