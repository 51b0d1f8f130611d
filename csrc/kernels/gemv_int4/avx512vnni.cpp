// int4 products of 1 to 8 tokens for AVX-512 VNNI.
//
// Here the nibble is the unsigned operand of vpdpbusd and the token's q the signed one, which may be a broadcast from
// memory; scales come after the sums of a group of 8 tiles, not before every product as in gemm_int4/avx512vnni.cpp:
//
//   acc = sum over a group's 32 inputs of n q         n = q4 + 8
//   sum += m (acc - 8 sum of q)                       the last sum is the token's own (TokenRows::sums)
//
// Four instructions a tile and token and five more a group: with one token, half of what expanding the nibbles to bytes
// would cost. All sums are exact: 15 * 127 * 32 * 18 * (inputs / 32) is below 2^31 up to 62,000 inputs, and
// intermediate int32 sums may wrap and come back. Groups of a block-sparse linear hold inputs from anywhere: their 8
// sum of q is a second product, by a vector of 8s.
#include "kernels/common/vec_avx512.h"

#include "decoder_args.h"
#include "kernels/common/epilogue.h"
#include "kernels/common/with_rows.h"

namespace approxrt {
namespace {

// As in gemm_groups/zmm.h: the hardware fetches ahead within a page of 4 KB only.
constexpr int64_t kFetchAhead = 5120;

struct Strip {
    const GemvInt4Args* a;
    int32_t strip;
};

inline __m512i unpack(const uint8_t* nibbles) {
    const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    const __m512i twice = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(nibbles)));
    return _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15));
}

inline __attribute__((always_inline)) void multiply_add(__m512i n, const int8_t* q, __m512i& acc) {
    __asm__("vpdpbusd %[q]%{1to16%}, %[n], %[acc]"
            : [acc] "+v"(acc)
            : [n] "v"(n), [q] "m"(*reinterpret_cast<const int32_t*>(q)));
}

template <int T>
struct Tokens {
    // `tiles` of a group of a dense linear; x: the group's first input.
    template <bool kSparse>
    static inline __attribute__((always_inline)) void group(const Strip& s, const uint8_t* nibbles, int32_t tiles,
                                                            const int8_t* x, const int32_t* sums_of_q,
                                                            const uint32_t* offsets, const uint8_t* scales,
                                                            __m512i (&sum)[T]) {
        const int64_t ld = s.a->x->ld;
        const uint32_t rows = static_cast<uint32_t>(s.a->panel_rows);
#pragma GCC unroll 4
        for (int line = 0; line < kGroupTiles * kInt4TileBytes; line += 64)
            _mm_prefetch(nibbles + kFetchAhead + line, _MM_HINT_T0);
        __m512i acc[T], eights[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            acc[t] = kSparse ? _mm512_setzero_si512() : _mm512_set1_epi32(-8 * sums_of_q[t * (ld / kGroupWeights)]);
            eights[t] = _mm512_setzero_si512();
        }
        const auto tile = [&](int32_t i) __attribute__((always_inline)) {
            const __m512i n = unpack(nibbles + i * kInt4TileBytes);
            const int8_t* at = kSparse ? x + offsets[i] / rows : x + i * kTileK;
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) {
                multiply_add(n, at + t * ld, acc[t]);
                if (kSparse) multiply_add(_mm512_set1_epi8(8), at + t * ld, eights[t]);
            }
        };
        if (tiles == kGroupTiles) {
#pragma GCC unroll 8
            for (int32_t i = 0; i < kGroupTiles; ++i) tile(i);
        } else {
            for (int32_t i = 0; i < tiles; ++i) tile(i);
        }
        const __m512i m = _mm512_cvtepu8_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(scales)));
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            const __m512i exact = kSparse ? _mm512_sub_epi32(acc[t], eights[t]) : acc[t];
            sum[t] = _mm512_add_epi32(sum[t], _mm512_mullo_epi32(exact, m));
        }
    }

    static void run(const Strip& s) {
        const GemmInt8Args& a = s.a->common.common;
        const PackedInt8& w = *a.w;
        const PackedInt4& w4 = *s.a->common.w;
        const int32_t begin = w.indptr[s.strip], end = w.indptr[s.strip + 1];
        const uint8_t* nibbles =
            reinterpret_cast<const uint8_t*>(w.tiles) + static_cast<int64_t>(begin) * kInt4TileBytes;
        const uint8_t* scales = w4.group_scale + static_cast<int64_t>(w4.group_ptr[s.strip]) * kTileN;
        const int8_t* x = s.a->x->q;
        const int32_t* sums_of_q = s.a->x->sums;
        __m512i sum[T];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) sum[t] = _mm512_setzero_si512();
        for (int32_t i = begin; i < end; i += kGroupTiles) {
            const int32_t tiles = end - i < kGroupTiles ? end - i : kGroupTiles;
            if (w.offsets) {
                group<true>(s, nibbles, tiles, x, nullptr, w.offsets + i, scales, sum);
            } else {
                group<false>(s, nibbles, tiles, x, sums_of_q, nullptr, scales, sum);
                x += kGroupWeights;
                ++sums_of_q;
            }
            nibbles += kGroupTiles * kInt4TileBytes;
            scales += kTileN;
        }
        alignas(64) int32_t sums[T * kTileN];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) _mm512_store_si512(sums + t * kTileN, sum[t]);
        finish_int8(a, 0, T, s.strip, sums);
    }
};

}  // namespace

void gemv_int4_avx512vnni(const GemvInt4Args& a) {
    Strip s{&a, 0};
    for (s.strip = a.common.common.strip_begin; s.strip < a.common.common.strip_end; ++s.strip)
        with_rows<kGemvTokens, Tokens>(a.common.common.rows, s);
}

}  // namespace approxrt
