// Exact logits of single words with AVX2: eight words at a time, whose sums of a group become the lanes of a vector.
//
// |q| and the input with q's sign are the operands of vpmaddubsw: 2 * 128 * 127 fits its 16 bits. gemm_groups
// multiplies by q + 128: 128 times the sum of the inputs, which the panel has, makes up the difference.
#include "kernels/common/vec_avx2.h"

#include "decoder_args.h"

namespace approxrt {
namespace {

constexpr int kWords = 8;

inline __m256i row_group(const int8_t* p, int64_t left) {
    if (left >= kGroupWeights) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    alignas(32) int8_t bytes[kGroupWeights] = {};
    __builtin_memcpy(bytes, p, static_cast<size_t>(left));
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(bytes));
}

// Sums of eight vectors, as lanes.
inline __m256i sums_of(const __m256i (&v)[kWords]) {
    const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

}  // namespace

void word_logits_avx2(const WordLogitsArgs& a) {
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
        }
        const char* block = static_cast<const char*>(a.panel);
        __m256 sum = _mm256_setzero_ps();
        for (int64_t g = 0; g < groups; ++g, block += kGroupTokenBytes) {
            const int64_t at = g * kGroupWeights, left = a.k - at;
            const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block));
            __m256i products[kWords];
            alignas(16) uint16_t halves[kWords];
#pragma GCC unroll 8
            for (int w = 0; w < kWords; ++w) {
                if (g % 2 == 0) _mm_prefetch(next[w] + at, _MM_HINT_T0);
                halves[w] = scale[w][g];
                const __m256i q = row_group(row[w] + at, left);
                const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q));
                products[w] = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            }
            int32_t shift;
            float inputs;
            __builtin_memcpy(&shift, block + kGroupWeights, 4);
            __builtin_memcpy(&inputs, block + kGroupWeights + 4, 4);
            const __m256i more = _mm256_set1_epi32(static_cast<int32_t>(inputs) * 128);
            const __m256i acc = _mm256_add_epi32(_mm256_sll_epi32(sums_of(products), _mm_cvtsi32_si128(shift)), more);
            const __m256 d = _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(halves)));
            sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc), d, sum);
            sum = _mm256_fmadd_ps(_mm256_set1_ps(inputs), _mm256_mul_ps(d, _mm256_set1_ps(-128.0f)), sum);
        }
        alignas(32) float y[kWords];
        _mm256_store_ps(y, _mm256_fmadd_ps(sum, _mm256_set1_ps(a.act_scale), _mm256_setzero_ps()));
        for (int w = 0; w < kWords && i + w < a.count; ++w) a.logits[a.ids[i + w]] = y[w];
    }
}

}  // namespace approxrt
