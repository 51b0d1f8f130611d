// Per-token quantisation into panels of 6 tokens of unsigned bytes: group k/4 of a token is 4 bytes.
//
// gemm_int8 wants 16-bit values on AVX2, because int8 products of pairs do not fit 16 bits; those of int4 do,
// and gemm_int4 takes bytes. Same integers and scales as quantize_rows, half the room.
#include "kernels/common/vec_avx2.h"

#include "args.h"

namespace approxrt {
namespace {

constexpr PanelLayout kLayout = byte_panels(6);

// Eight inputs (two groups) as unsigned bytes q + 128 in the low half.
inline __m128i quantize8(__m256 x, __m256 inv) {
    __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(x, inv));
    q = _mm256_max_epi32(_mm256_min_epi32(q, _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    return _mm_xor_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(static_cast<char>(0x80)));
}

inline void store_groups(char* out, size_t group, __m128i q, int groups) {
    const int32_t first = _mm_cvtsi128_si32(q), second = _mm_extract_epi32(q, 1);
    __builtin_memcpy(out, &first, 4);
    if (groups > 1) __builtin_memcpy(out + group, &second, 4);
}

}  // namespace

void quantize_rows_u8_avx2(const QuantizeRowsArgs& a) {
    const size_t panel_bytes = kLayout.panel_bytes(a.k), group = kLayout.group_bytes();
    const int32_t whole = a.k / 8 * 8, rest = a.k - whole,
                  groups = static_cast<int32_t>(round_up(a.k, kTileK) / kTileK);
    char* base = static_cast<char*>(a.panels);
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        char* out = base + (t / kLayout.mr) * panel_bytes + (t % kLayout.mr) * kTileK;
        Vec m0 = zero(), m1 = zero();
        int32_t i = 0;
        for (; i + 16 <= whole; i += 16) {
            m0 = max_magnitude(m0, load(x + i));
            m1 = max_magnitude(m1, load(x + i + 8));
        }
        for (; i < whole; i += 8) m0 = max_magnitude(m0, load(x + i));
        if (rest) m1 = max_magnitude(m1, load_n(x + whole, rest));
        const float highest = reduce_magnitude(max_magnitude(m0, m1));
        const bool live = !(highest <= kQuantizeFloor);
        a.scales[t] = live ? highest * (1.0f / 127.0f) : 0.0f;
        const __m256 inv = _mm256_set1_ps(live ? 127.0f / highest : 0.0f);
        for (i = 0; i < whole; i += 8, out += 2 * group)
            store_groups(out, group, quantize8(_mm256_loadu_ps(x + i), inv), 2);
        if (rest) store_groups(out, group, quantize8(load_n(x + whole, rest).v, inv), rest > kTileK ? 2 : 1);
    }
    // Tokens that only fill the last panel.
    const uint32_t fill = 0x80808080u;
    for (int32_t t = a.rows; t % kLayout.mr; ++t) {
        char* out = base + (t / kLayout.mr) * panel_bytes + (t % kLayout.mr) * kTileK;
        for (int32_t g = 0; g < groups; ++g, out += group) __builtin_memcpy(out, &fill, 4);
    }
}

}  // namespace approxrt
