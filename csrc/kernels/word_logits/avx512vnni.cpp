// Exact logits of single words for AVX-512 VNNI: q + 128 is the unsigned operand of vpdpbusd.
#include "zmm.h"

namespace approxrt {
namespace {

struct Vnni {
    static constexpr bool kMoved = true;
    static inline __attribute__((always_inline)) __m512i products(__m512i q, __m512i x) {
        const __m512i moved = _mm512_xor_si512(q, _mm512_set1_epi8(static_cast<char>(0x80)));
        return _mm512_dpbusd_epi32(_mm512_setzero_si512(), moved, x);
    }
};

}  // namespace

void word_logits_avx512vnni(const WordLogitsArgs& a) { word_logits_batches<Vnni>(a); }

}  // namespace approxrt
