// Exact logits of single words for AVX-512 without VNNI: |q| and the input with q's sign are the operands of
// vpmaddubsw, as in avx2.cpp.
#include "zmm.h"

namespace approxrt {
namespace {

struct Words {
    static constexpr bool kMoved = false;
    static inline __attribute__((always_inline)) __m512i products(__m512i q, __m512i x) {
        const __m512i turned = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(q), _mm512_setzero_si512(), x);
        return _mm512_madd_epi16(_mm512_maddubs_epi16(_mm512_abs_epi8(q), turned), _mm512_set1_epi16(1));
    }
};

}  // namespace

void word_logits_avx512(const WordLogitsArgs& a) { word_logits_batches<Words>(a); }

}  // namespace approxrt
