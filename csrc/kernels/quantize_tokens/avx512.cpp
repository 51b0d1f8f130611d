// Per-token quantisation into rows in one piece with AVX-512.
#include "decoder_args.h"
#include "kernels/common/quantize_panels_avx512.h"

namespace approxrt {

void quantize_tokens_avx512(const QuantizeTokensArgs& a) {
    const TokenRows& to = a.to;
    for (int32_t t = 0; t < to.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        int8_t* q = to.q + t * to.ld;
        uint8_t* u = to.u + t * to.ld;
        int32_t* sums = to.sums + t * (to.ld / kGroupWeights);
        const __m512 inv = row_inverse(x, to.k, to.scales + t);
        const auto sixteen = [&](int64_t i) {
            const int64_t left = to.k - i;
            return left >= 16 ? quantize16(_mm512_loadu_ps(x + i), inv)
                   : left > 0 ? quantize16(load_n(x + i, static_cast<int>(left)).v, inv)
                              : _mm512_setzero_si512();
        };
        for (int64_t i = 0; i < to.ld; i += kGroupWeights) {
            const __m512i first = sixteen(i), second = sixteen(i + 16);
            const __m256i bytes = _mm256_set_m128i(_mm512_cvtepi32_epi8(second), _mm512_cvtepi32_epi8(first));
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + i), bytes);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(u + i),
                                _mm256_xor_si256(bytes, _mm256_set1_epi8(static_cast<char>(0x80))));
            sums[i / kGroupWeights] = _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
        }
    }
}

}  // namespace approxrt
