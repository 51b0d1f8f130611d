// Per-token quantisation into panels of 24 tokens of unsigned bytes: group k/4 of a token is 4 bytes.
#include "vec_avx512.h"

#include "../args.h"

namespace approxrt {
namespace {

constexpr PanelLayout kLayout{24, 1, 128};

// Sixteen inputs (four groups) as unsigned bytes q + 128.
inline __m128i quantize16(__m512 x, __m512 inv) {
    __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x, inv));
    q = _mm512_max_epi32(_mm512_min_epi32(q, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
    return _mm_xor_si128(_mm512_cvtepi32_epi8(q), _mm_set1_epi8(static_cast<char>(0x80)));
}

inline void store_groups(char* out, size_t group, __m128i q, int groups) {
    const auto put = [&](int g, int32_t value) { __builtin_memcpy(out + g * group, &value, 4); };
    put(0, _mm_extract_epi32(q, 0));
    if (groups > 1) put(1, _mm_extract_epi32(q, 1));
    if (groups > 2) put(2, _mm_extract_epi32(q, 2));
    if (groups > 3) put(3, _mm_extract_epi32(q, 3));
}

}  // namespace

void quantize_rows_avx512vnni(const QuantizeRowsArgs& a) {
    const size_t panel_bytes = kLayout.panel_bytes(a.k), group = kLayout.group_bytes();
    const int32_t whole = a.k / 16 * 16, rest = a.k - whole,
                  groups = static_cast<int32_t>(round_up(a.k, kTileK) / kTileK);
    char* base = static_cast<char*>(a.panels);
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        char* out = base + (t / kLayout.mr) * panel_bytes + (t % kLayout.mr) * kTileK;
        Vec m = zero();
        for (int32_t i = 0; i < whole; i += 16) m = max(m, abs(load(x + i)));
        if (rest) m = max(m, abs(load_n(x + whole, rest)));
        const float highest = reduce_max(m);
        const bool live = highest > kQuantizeFloor;
        a.scales[t] = live ? highest * (1.0f / 127.0f) : 0.0f;
        const __m512 inv = _mm512_set1_ps(live ? 127.0f / highest : 0.0f);
        for (int32_t i = 0; i < whole; i += 16, out += 4 * group)
            store_groups(out, group, quantize16(_mm512_loadu_ps(x + i), inv), 4);
        if (rest) store_groups(out, group, quantize16(load_n(x + whole, rest).v, inv), (rest + kTileK - 1) / kTileK);
    }
    // Tokens that only fill the last panel.
    const uint32_t fill = 0x80808080u;
    for (int32_t t = a.rows; t % kLayout.mr; ++t) {
        char* out = base + (t / kLayout.mr) * panel_bytes + (t % kLayout.mr) * kTileK;
        for (int32_t g = 0; g < groups; ++g, out += group) __builtin_memcpy(out, &fill, 4);
    }
}

}  // namespace approxrt
