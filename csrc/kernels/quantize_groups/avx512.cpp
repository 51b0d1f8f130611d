// Quantisation with a scale a token and a power of two a group of 32 inputs, with AVX-512.
#include "kernels/common/quantize_panels_avx512.h"

namespace approxrt {
namespace {

// The bits of the group's maximum, of 32 inputs in two vectors; never above those of the token's, NaN or not.
inline int32_t peak_of(__m512 a, __m512 b) {
    const __m512i m = _mm512_castps_si512(max_magnitude({_mm512_abs_ps(a)}, {b}).v);
    const __m256i h = _mm256_max_epi32(_mm512_castsi512_si256(m), _mm512_extracti32x8_epi32(m, 1));
    __m128i q = _mm_max_epi32(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1));
    q = _mm_max_epi32(q, _mm_shuffle_epi32(q, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(q, _mm_shuffle_epi32(q, 0xb1)));
}

struct Group {
    __m512 first, second;

    Group(const float* x, int32_t count) {
        if (count >= kGroupWeights) {
            first = _mm512_loadu_ps(x), second = _mm512_loadu_ps(x + 16);
        } else {
            first = _mm512_maskz_loadu_ps(lane_mask(count < 16 ? count : 16), x);
            second = count > 16 ? _mm512_maskz_loadu_ps(lane_mask(count - 16), x + 16) : _mm512_setzero_ps();
        }
    }
};

}  // namespace

void quantize_groups_avx512(const QuantizeGroupsArgs& a) {
    const GroupPanels layout{a.mr};
    const size_t panel_bytes = layout.panel_bytes(a.k), tile = static_cast<size_t>(a.mr) * kTileK;
    const auto groups = static_cast<int32_t>(round_up(a.k, kGroupWeights) / kGroupWeights);
    char* base = static_cast<char*>(a.panels);
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        char* out = base + t / a.mr * panel_bytes + t % a.mr * 4;
        Vec most = zero();
        for (int32_t i = 0; i < a.k; i += kGroupWeights) {
            const Group v(x + i, a.k - i);
            most = max_magnitude(most, max_magnitude({_mm512_abs_ps(v.first)}, {v.second}));
        }
        const float highest = reduce_magnitude(most);
        const bool live = !(highest <= kQuantizeFloor);
        a.scales[t] = live ? highest * (1.0f / 127.0f) * (1.0f / (1 << kMaxGroupShift)) : 0.0f;
        const float inverse = live ? 127.0f / highest : 0.0f;
        int32_t highest_bits;
        __builtin_memcpy(&highest_bits, &highest, 4);
        for (int32_t g = 0; g < groups; ++g, out += a.mr * kGroupTokenBytes) {
            const Group v(x + g * kGroupWeights, a.k - g * kGroupWeights);
            int32_t e = (highest_bits - peak_of(v.first, v.second)) >> 23;
            e = e > kMaxGroupShift ? kMaxGroupShift : e;
            const int32_t shift = live ? kMaxGroupShift - e : 0;
            const __m512 factor = _mm512_set1_ps(inverse * static_cast<float>(1 << e));
            const __m512i first = quantize16(v.first, factor), second = quantize16(v.second, factor);
            const auto sum =
                static_cast<float>(_mm512_reduce_add_epi32(_mm512_add_epi32(first, second)) * (1 << shift));
            const __m128i low = _mm512_cvtepi32_epi8(first), high = _mm512_cvtepi32_epi8(second);
            const auto put = [&](int i, int32_t value) { __builtin_memcpy(out + i * tile, &value, 4); };
            put(0, _mm_extract_epi32(low, 0));
            put(1, _mm_extract_epi32(low, 1));
            put(2, _mm_extract_epi32(low, 2));
            put(3, _mm_extract_epi32(low, 3));
            put(4, _mm_extract_epi32(high, 0));
            put(5, _mm_extract_epi32(high, 1));
            put(6, _mm_extract_epi32(high, 2));
            put(7, _mm_extract_epi32(high, 3));
            put(8, shift);
            __builtin_memcpy(out + 9 * tile, &sum, 4);
        }
    }
    // Tokens that only fill the last panel.
    for (int32_t t = a.rows; t % a.mr; ++t) {
        char* out = base + t / a.mr * panel_bytes + t % a.mr * 4;
        for (int32_t i = 0; i < groups * 10; ++i, out += tile) __builtin_memset(out, 0, 4);
    }
}

}  // namespace approxrt
