// Per-token quantisation into panels of 6 tokens of 16-bit values: group k/4 of a token is 8 bytes.
#include "kernels/common/vec_avx2.h"

#include "args.h"

namespace approxrt {
namespace {

constexpr PanelLayout kLayout = word_panels(6);

// Eight inputs (two groups) as saturated 16-bit integers.
inline __m128i quantize8(__m256 x, __m256 inv) {
    __m256i q = _mm256_cvtps_epi32(_mm256_mul_ps(x, inv));
    q = _mm256_max_epi32(_mm256_min_epi32(q, _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
    return _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
}

}  // namespace

void quantize_rows_avx2(const QuantizeRowsArgs& a) {
    const size_t panel_bytes = kLayout.panel_bytes(a.k), group = kLayout.group_bytes();
    const int32_t whole = a.k / 8 * 8, rest = a.k - whole,
                  groups = static_cast<int32_t>(round_up(a.k, kTileK) / kTileK);
    char* base = static_cast<char*>(a.panels);
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        char* out = base + (t / kLayout.mr) * panel_bytes + (t % kLayout.mr) * 8;
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
        for (i = 0; i < whole; i += 8, out += 2 * group) {
            const __m128i q = quantize8(_mm256_loadu_ps(x + i), inv);
            _mm_storel_epi64(reinterpret_cast<__m128i*>(out), q);
            _mm_storeh_pd(reinterpret_cast<double*>(out + group), _mm_castsi128_pd(q));
        }
        if (rest) {
            const __m128i q = quantize8(load_n(x + whole, rest).v, inv);
            _mm_storel_epi64(reinterpret_cast<__m128i*>(out), q);
            if (rest > 4) _mm_storeh_pd(reinterpret_cast<double*>(out + group), _mm_castsi128_pd(q));
        }
    }
    // Tokens that only fill the last panel: the GEMM computes whole register blocks of what is there.
    for (int32_t t = a.rows; t % kLayout.mr; ++t) {
        char* out = base + (t / kLayout.mr) * panel_bytes + (t % kLayout.mr) * 8;
        for (int32_t g = 0; g < groups; ++g, out += group)
            _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_setzero_si128());
    }
}

}  // namespace approxrt
