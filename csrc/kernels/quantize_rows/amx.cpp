// Per-token quantisation into blocks of 16 tokens x 64 inputs of unsigned bytes, tile registers of AMX.
#include "kernels/common/quantize_panels_avx512.h"

namespace approxrt {
namespace {

constexpr PanelLayout kLayout = byte_blocks(16);

// Inputs i .. i + 15 of a token; only those of `live` are not zeros.
inline void put(char* token, int32_t i, __m512i q, __mmask16 live = 0xffff) {
    const __m128i u = _mm_xor_si128(_mm512_cvtepi32_epi8(q), _mm_set1_epi8(static_cast<char>(0x80)));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(token + kLayout.offset(0, i)), _mm_maskz_mov_epi8(live, u));
}

// Those behind the last group of k inputs are zeros.
inline __mmask16 live_from(int32_t i, int32_t k) {
    const int64_t left = round_up(k, kTileK) - i;
    return static_cast<__mmask16>(left >= 16 ? 0xffff : left > 0 ? (1u << left) - 1 : 0);
}

}  // namespace

void quantize_rows_amx(const QuantizeRowsArgs& a) {
    const size_t panel_bytes = kLayout.panel_bytes(a.k);
    const int32_t whole = a.k / 16 * 16, rest = a.k - whole, end = static_cast<int32_t>(round_up(a.k, kBlockK));
    const auto token_of = [&](int32_t t) {
        return static_cast<char*>(a.panels) + t / kLayout.mr * panel_bytes + t % kLayout.mr * kBlockK;
    };
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        const __m512 inv = row_inverse(x, a.k, a.scales + t);
        char* token = token_of(t);
        for (int32_t i = 0; i < whole; i += 16) put(token, i, quantize16(_mm512_loadu_ps(x + i), inv));
        int32_t i = whole;
        if (rest) put(token, i, quantize16(load_n(x + i, rest).v, inv), live_from(i, a.k)), i += 16;
        for (; i < end; i += 16) put(token, i, _mm512_setzero_si512(), 0);
    }
    // Tokens that only fill the last panel.
    for (int32_t t = a.rows; t % kLayout.mr; ++t)
        for (int32_t i = 0; i < end; i += 16) put(token_of(t), i, _mm512_setzero_si512(), live_from(i, a.k));
}

}  // namespace approxrt
