// Register blocks of the GEMM of group-scaled weights in ymm: up to 6 tokens x 16 outputs. Included only by avx2.cpp
// and
// avxvnni.cpp.
//
// Formula and order are those of zmm.h. The 12 accumulators of a group leave no registers for sums, which
// wait in L1: a load and a store a group, token and 8 outputs, beside 8 dot products.
#pragma once

#include "kernels/common/vec_avx2.h"

#include "blocks.h"

namespace approxrt {
namespace {

constexpr int kGroupsRows = 6;

struct Tile {
    __m256i q0, q1;  // outputs 0..7, 8..15
};

inline __attribute__((always_inline)) __m256i nibbles(__m256i both, bool high) {
    return _mm256_and_si256(high ? _mm256_srli_epi16(both, 4) : both, _mm256_set1_epi8(15));
}
inline __attribute__((always_inline)) Tile halves_of(const uint8_t* w, bool high) {
    const auto* both = reinterpret_cast<const __m256i*>(w);
    return {nibbles(_mm256_load_si256(both), high), nibbles(_mm256_load_si256(both + 1), high)};
}
inline __attribute__((always_inline)) Tile bytes_of(const uint8_t* w) {
    const auto* bytes = reinterpret_cast<const __m256i*>(w);
    return {_mm256_load_si256(bytes), _mm256_load_si256(bytes + 1)};
}

// Six bits: the low nibbles and, moved to bits 4 and 5, the high ones.
inline __attribute__((always_inline)) Tile sixes_of(const uint8_t* w, int c) {
    const Tile low = halves_of(w + c / 2 * 64, c % 2), high = bytes_of(w + 256 + c / 4 * 64);
    const __m256i mask = _mm256_set1_epi8(0x30);
    const auto there = [&](__m256i x) {
        // By a count in a register, which may be 0: h is no constant here.
        const int h = c % 4;
        return _mm256_and_si256(h < 2 ? _mm256_sll_epi16(x, _mm_cvtsi32_si128(4 - 2 * h))
                                      : _mm256_srl_epi16(x, _mm_cvtsi32_si128(2 * h - 4)),
                                mask);
    };
    return {_mm256_or_si256(low.q0, there(high.q0)), _mm256_or_si256(low.q1, there(high.q1))};
}

template <class Format>
inline __attribute__((always_inline)) Tile wide_of(const uint8_t* w, int c) {
    if constexpr (Format::kBits == 6) {
        return sixes_of(w, c);
    } else {
        return bytes_of(w + c * 64);
    }
}

// acc[t] += sum of q . a over a group, tile(c) being 4 inputs of 16 outputs. Level: dot(q0, q1, a, acc), sums(acc).
template <class Level, int T, class TileOf>
inline __attribute__((always_inline)) void products(const char* x, int64_t mr, __m256i (&acc)[T][2],
                                                    const TileOf& tile) {
#pragma GCC unroll 6
    for (int r = 0; r < T; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int c = 0; c < 8; ++c, x += mr * kTileK) {
        const Tile q = tile(c);
#pragma GCC unroll 6
        for (int r = 0; r < T; ++r) Level::dot(q.q0, q.q1, x + r * kTileK, acc[r]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < T; ++r)
        for (int v = 0; v < 2; ++v) acc[r][v] = Level::sums(acc[r][v]);
}

template <class Format, class Level, int T>
inline __attribute__((always_inline)) void group_products(const uint8_t* w, const char* x, int64_t mr,
                                                          __m256i (&acc)[T][2]) {
    if constexpr (Format::kBits == 4) {
        products<Level>(x, mr, acc, [&](int c) { return halves_of(w + c / 2 * 64, c % 2); });
    } else if constexpr (Level::kBits == 8) {
        products<Level>(x, mr, acc, [&](int c) { return wide_of<Format>(w, c); });
    } else {
        // q = 16 high + low, one after the other.
        __m256i high[T][2];
        const auto half = [&](int c, bool top) {
            const Tile q = wide_of<Format>(w, c);
            return Tile{nibbles(q.q0, top), nibbles(q.q1, top)};
        };
        products<Level>(x, mr, high, [&](int c) { return half(c, true); });
        products<Level>(x, mr, acc, [&](int c) { return half(c, false); });
        for (int r = 0; r < T; ++r)
            for (int v = 0; v < 2; ++v) acc[r][v] = _mm256_add_epi32(_mm256_slli_epi32(high[r][v], 4), acc[r][v]);
    }
}

template <class Format, class Level, int T>
inline void groups_block(const GroupsBlock& b) {
    const int64_t mr = b.mr;
    const uint8_t* w = b.w;
    const char* x = b.x;
    for (int i = 0; i < T * kTileN; ++i) b.sums[i] = 0.0f;
    for (int32_t g = 0; g < b.groups; ++g, w += Format::kBytes, x += mr * kGroupTokenBytes) {
        __m256i acc[T][2];
        group_products<Format, Level, T>(w, x, mr, acc);
        const auto* halves = reinterpret_cast<const __m128i*>(w + Format::kScales);
        const auto* shifts = reinterpret_cast<const int32_t*>(x + kGroupWeights * mr);
        const auto* inputs = reinterpret_cast<const float*>(x + (kGroupWeights + 4) * mr);
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
            const __m256 d = _mm256_cvtph_ps(_mm_load_si128(halves + v));
            __m256 m;
            if constexpr (Format::kBits == 4) {
                m = _mm256_cvtph_ps(_mm_load_si128(halves + 2 + v));
            } else {
                m = _mm256_mul_ps(d, _mm256_set1_ps(-static_cast<float>(1 << (Format::kBits - 1))));
            }
#pragma GCC unroll 6
            for (int r = 0; r < T; ++r) {
                float* to = b.sums + r * kTileN + v * 8;
                const __m256i shifted = _mm256_sllv_epi32(acc[r][v], _mm256_set1_epi32(shifts[r]));
                const __m256 sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(shifted), d, _mm256_load_ps(to));
                _mm256_store_ps(to, _mm256_fmadd_ps(_mm256_set1_ps(inputs[r]), m, sum));
            }
        }
    }
}

template <class Level>
struct GroupsYmm {
    template <class Format>
    struct Of {
        template <int T>
        struct Rows {
            static void run(const GroupsBlock& b) { groups_block<Format, Level, T>(b); }
        };
    };

    static void run(const GemmGroupsArgs& a) {
        if (a.w->bits == 4) {
            gemm_groups_blocks<kGroupsRows, Of<G4>::template Rows>(a);
        } else if (a.w->bits == 6) {
            gemm_groups_blocks<kGroupsRows, Of<G6>::template Rows>(a);
        } else {
            gemm_groups_blocks<kGroupsRows, Of<G8>::template Rows>(a);
        }
    }
};

}  // namespace
}  // namespace approxrt
