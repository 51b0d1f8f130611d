// Exact logits of single words in zmm: sixteen words at a time, two groups of each at once, whose sums become the lanes
// of two vectors. Included only by avx512*.cpp.
//
// Rows lie anywhere in the table, so memory has to be asked for them early: with each line of this batch's words goes
// the request for the same line of the next batch's.
#pragma once

#include "kernels/common/vec_avx512.h"

#include "decoder_args.h"

namespace approxrt {
namespace {

constexpr int kWords = 16;
constexpr int kPairsTogether = 8;  // pairs of groups whose scales are brought in order at once

// v[w]: products of word w, lanes 0 .. 7 of one group, 8 .. 15 of the other; to sums with a word a lane.
inline __attribute__((always_inline)) void sums_of_words(__m512i (&v)[kWords], __m512i& first, __m512i& second) {
    __m512i four[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const __m512i* p = v + 4 * i;
        const __m512i a = _mm512_add_epi32(_mm512_unpacklo_epi32(p[0], p[1]), _mm512_unpackhi_epi32(p[0], p[1]));
        const __m512i b = _mm512_add_epi32(_mm512_unpacklo_epi32(p[2], p[3]), _mm512_unpackhi_epi32(p[2], p[3]));
        four[i] = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
    }
    // Quarters: a group is two of them.
    __m512i eight[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
        eight[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(four[2 * i], four[2 * i + 1], 0x88),
                                    _mm512_shuffle_i32x4(four[2 * i], four[2 * i + 1], 0xdd));
    first = _mm512_shuffle_i32x4(eight[0], eight[1], 0x88);
    second = _mm512_shuffle_i32x4(eight[0], eight[1], 0xdd);
}

// scales[p][w]: float16 bits of word w's groups g + 2 p (low half) and g + 2 p + 1.
inline void order_scales(const uint16_t* const (&scale)[kWords], int64_t g, int64_t groups,
                         uint32_t (&scales)[kPairsTogether][kWords]) {
    const int64_t left = groups - g, pairs = left / 2 < kPairsTogether ? left / 2 : kPairsTogether;
    for (int w = 0; w < kWords; ++w)
        for (int64_t p = 0; p < pairs; ++p) __builtin_memcpy(&scales[p][w], scale[w] + g + 2 * p, 4);
    if (pairs < kPairsTogether && left % 2)
        for (int w = 0; w < kWords; ++w) scales[pairs][w] = scale[w][groups - 1];
}

// sum += a group's products. acc: sums with q, or with q + 128 already.
template <class Level>
inline __attribute__((always_inline)) __m512 with_group(__m512 sum, __m512i acc, __m256i halves, const char* block) {
    int32_t shift;
    float inputs;
    __builtin_memcpy(&shift, block + kGroupWeights, 4);
    __builtin_memcpy(&inputs, block + kGroupWeights + 4, 4);
    acc = _mm512_sll_epi32(acc, _mm_cvtsi32_si128(shift));
    if constexpr (!Level::kMoved) acc = _mm512_add_epi32(acc, _mm512_set1_epi32(static_cast<int32_t>(inputs) * 128));
    const __m512 d = _mm512_cvtph_ps(halves);
    sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(acc), d, sum);
    return _mm512_fmadd_ps(_mm512_set1_ps(inputs), _mm512_mul_ps(d, _mm512_set1_ps(-128.0f)), sum);
}

// Level: products(q, x), sixteen sums of four products each, of q + 128 where kMoved and else of q.
template <class Level>
inline void word_logits_batches(const WordLogitsArgs& a) {
    const int64_t groups = round_up(a.k, kGroupWeights) / kGroupWeights;
    for (int32_t i = 0; i < a.count; i += kWords) {
        const int8_t *row[kWords], *next[kWords];
        const uint16_t* scale[kWords];
        for (int w = 0; w < kWords; ++w) {
            // The last batch's lanes that are left over repeat its last word.
            const int64_t word = a.ids[i + w < a.count ? i + w : a.count - 1];
            row[w] = a.q + word * a.k, scale[w] = a.scale + word * groups;
            const int64_t soon = a.ids[i + kWords + w < a.count ? i + kWords + w : a.count - 1];
            next[w] = a.q + soon * a.k;
            _mm_prefetch(a.scale + soon * groups, _MM_HINT_T0);
            // A row that begins within a line ends in one more than its bytes fill.
            _mm_prefetch(next[w] + a.k - 1, _MM_HINT_T0);
        }
        const char* block = static_cast<const char*>(a.panel);
        alignas(64) uint32_t scales[kPairsTogether][kWords];  // of a pair of groups, the first in the low half
        __m512 sum = _mm512_setzero_ps();
        for (int64_t g = 0; g < groups; g += 2, block += 2 * kGroupTokenBytes) {
            const int64_t pair = g / 2;
            if (pair % kPairsTogether == 0) order_scales(scale, g, groups, scales);
            const int64_t at = g * kGroupWeights, left = a.k - at;
            const __mmask64 there = left >= 64 ? ~__mmask64{0} : (__mmask64{1} << left) - 1;
            const bool two = g + 1 < groups;
            __m512i x = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block)));
            const __m256i behind = two ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + kGroupTokenBytes))
                                       : _mm256_setzero_si256();
            x = _mm512_inserti64x4(x, behind, 1);
            __m512i products[kWords];
#pragma GCC unroll 16
            for (int w = 0; w < kWords; ++w) {
                _mm_prefetch(next[w] + at, _MM_HINT_T0);
                products[w] = Level::products(_mm512_maskz_loadu_epi8(there, row[w] + at), x);
            }
            __m512i first, second;
            sums_of_words(products, first, second);
            const __m512i halves = _mm512_load_si512(scales[pair % kPairsTogether]);
            sum = with_group<Level>(sum, first, _mm512_cvtepi32_epi16(halves), block);
            if (two)
                sum = with_group<Level>(sum, second, _mm512_cvtepi32_epi16(_mm512_srli_epi32(halves, 16)),
                                        block + kGroupTokenBytes);
        }
        alignas(64) float y[kWords];
        _mm512_store_ps(y, _mm512_fmadd_ps(sum, _mm512_set1_ps(a.act_scale), _mm512_setzero_ps()));
        for (int w = 0; w < kWords && i + w < a.count; ++w) a.logits[a.ids[i + w]] = y[w];
    }
}

}  // namespace
}  // namespace approxrt
