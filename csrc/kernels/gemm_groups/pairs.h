// Register blocks of the GEMM of group-scaled weights in zmm: up to 12 tokens x 32 outputs, two strips at once.
// Included only by avx512vnni.cpp.
//
// Formula and order are those of zmm.h, and so is every result. A token's broadcast serves both strips: 12
// loads and those of q for 24 products in place of 24 and more. That matters where two products a cycle can be had (Ice
// Lake: 1.2 times as fast). 24 accumulators leave no registers for sums, which wait in L1: a load and a store for 8
// products.
#pragma once

#include "zmm.h"

namespace approxrt {
namespace {

constexpr int kStripsOfPair = 2;

// Tokens of a panel of kMr and two strips.
struct GroupsPair {
    const uint8_t* w;     // of the first strip's first group
    int64_t strip_bytes;  // from there to the second strip's
    const char* x;        // the first token in the panel's first group
    int32_t groups;
    const uint8_t* next;  // a strip that is needed soon: a group of it is fetched into L2 a step; null: none
    float* sums;          // [kStripsOfPair][kMr][16], written
};

template <class Format, class Level, int T, int kMr>
inline void groups_pair(const GroupsPair& b) {
    static_assert(T <= kGroupsRows && T <= kMr, "what registers hold");
    constexpr int S = kStripsOfPair;
    const uint8_t* w = b.w;
    const char* x = b.x;
#pragma GCC unroll 2
    for (int s = 0; s < S; ++s)
#pragma GCC unroll 12
        for (int r = 0; r < T; ++r) _mm512_store_ps(b.sums + (s * kMr + r) * kTileN, _mm512_setzero_ps());
    for (int32_t g = 0; g < b.groups; ++g, w += Format::kBytes, x += kMr * kGroupTokenBytes) {
        // Sums are in memory between groups: a compiler that keeps them in registers too stores all of them twice.
        __asm__ volatile("" ::: "memory");
        if (b.next)
#pragma GCC unroll 9
            for (int line = 0; line < (Format::kBytes + 63) / 64; ++line)
                _mm_prefetch(b.next + g * static_cast<int64_t>(Format::kBytes) + line * 64, _MM_HINT_T1);
        __m512i acc[S][T];
#pragma GCC unroll 2
        for (int s = 0; s < S; ++s)
#pragma GCC unroll 12
            for (int r = 0; r < T; ++r) acc[s][r] = _mm512_setzero_si512();
#pragma GCC unroll 8
        for (int c = 0; c < 8; ++c) {
            __m512i q[S];
#pragma GCC unroll 2
            for (int s = 0; s < S; ++s) q[s] = tile_of(w + s * b.strip_bytes, c, Format{});
#pragma GCC unroll 12
            for (int r = 0; r < T; ++r) {
                int32_t inputs;
                __builtin_memcpy(&inputs, x + (c * kMr + r) * kTileK, 4);
                const __m512i a = _mm512_set1_epi32(inputs);
#pragma GCC unroll 2
                for (int s = 0; s < S; ++s) Level::dot(q[s], a, acc[s][r]);
            }
        }
        __m512 d[S], m[S];
#pragma GCC unroll 2
        for (int s = 0; s < S; ++s) {
            const auto* halves = reinterpret_cast<const __m256i*>(w + s * b.strip_bytes + Format::kScales);
            d[s] = _mm512_cvtph_ps(_mm256_load_si256(halves));
            if constexpr (Format::kBits == 4) {
                m[s] = _mm512_cvtph_ps(_mm256_load_si256(halves + 1));
            } else {
                m[s] = _mm512_mul_ps(d[s], _mm512_set1_ps(-static_cast<float>(1 << (Format::kBits - 1))));
            }
        }
        const auto* shifts = reinterpret_cast<const int32_t*>(x + kGroupWeights * kMr);
        const auto* inputs = reinterpret_cast<const float*>(x + (kGroupWeights + 4) * kMr);
#pragma GCC unroll 12
        for (int r = 0; r < T; ++r) {
            const __m512i shift = _mm512_set1_epi32(shifts[r]);
            const __m512 input = _mm512_set1_ps(inputs[r]);
#pragma GCC unroll 2
            for (int s = 0; s < S; ++s) {
                float* sum = b.sums + (s * kMr + r) * kTileN;
                const __m512 product = _mm512_cvtepi32_ps(_mm512_sllv_epi32(acc[s][r], shift));
                _mm512_store_ps(sum, _mm512_fmadd_ps(input, m[s], _mm512_fmadd_ps(product, d[s], _mm512_load_ps(sum))));
            }
        }
    }
}

// All strips but a last odd one, for panels of kMr tokens; returns the first strip that is left.
template <class Format, class Level, int kMr>
inline int32_t gemm_groups_pairs(const GemmGroupsArgs& a) {
    static_assert(kMr % 4 == 0, "pieces of 12, 8 and 4 tokens");
    const int64_t strip_bytes = a.w->groups * static_cast<int64_t>(Format::kBytes);
    const size_t panel_bytes = GroupPanels{kMr}.panel_bytes(a.w->k);
    alignas(64) float sums[kStripsOfPair * kMr * kTileN];
    int32_t strip = a.strip_begin;
    for (; strip + kStripsOfPair <= a.strip_end; strip += kStripsOfPair) {
        const uint8_t* w = a.w->blocks + strip * strip_bytes;
        const char* panel = static_cast<const char*>(a.panels);
        for (int32_t t = 0; t < a.rows; t += kMr, panel += panel_bytes) {
            const int32_t rows = a.rows - t < kMr ? a.rows - t : kMr;
            for (int32_t r = 0; r < rows; r += kGroupsRows) {
                // The first panel's blocks fetch the next two strips, which come from L3 or further.
                const int32_t after = strip + kStripsOfPair + r / kGroupsRows;
                const bool fetch = t == 0 && r / kGroupsRows < kStripsOfPair && after < a.w->strips;
                const GroupsPair block{w,
                                       strip_bytes,
                                       panel + r * kTileK,
                                       a.w->groups,
                                       fetch ? a.w->blocks + after * strip_bytes : nullptr,
                                       sums + r * kTileN};
                // In steps of four: the panel has zeros behind its tokens.
                if (rows - r > 8) {
                    groups_pair<Format, Level, 12, kMr>(block);
                } else if (rows - r > 4) {
                    groups_pair<Format, Level, 8, kMr>(block);
                } else {
                    groups_pair<Format, Level, 4, kMr>(block);
                }
            }
            for (int s = 0; s < kStripsOfPair; ++s) finish_groups(a, t, rows, strip + s, sums + s * kMr * kTileN);
        }
    }
    return strip;
}

}  // namespace
}  // namespace approxrt
