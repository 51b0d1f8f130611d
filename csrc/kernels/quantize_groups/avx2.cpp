// Quantisation with a scale a token and a power of two a group of 32 inputs, with AVX2.
#include "kernels/common/vec_avx2.h"

#include "args.h"

namespace approxrt {
namespace {

constexpr int kVectors = kGroupWeights / 8;

struct Group {
    Vec v[kVectors];

    Group(const float* x, int32_t count) {
        for (int i = 0; i < kVectors; ++i) {
            const int32_t left = count - 8 * i;
            v[i] = left >= 8 ? load(x + 8 * i) : left > 0 ? load_n(x + 8 * i, left) : zero();
        }
    }
    Vec most() const { return max_magnitude(max_magnitude(abs(v[0]), v[1]), max_magnitude(abs(v[2]), v[3])); }
};

inline int32_t bits_of(float x) {
    int32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    return bits;
}

}  // namespace

void quantize_groups_avx2(const QuantizeGroupsArgs& a) {
    const GroupPanels layout{a.mr};
    const size_t panel_bytes = layout.panel_bytes(a.k), tile = static_cast<size_t>(a.mr) * kTileK;
    const auto groups = static_cast<int32_t>(round_up(a.k, kGroupWeights) / kGroupWeights);
    char* base = static_cast<char*>(a.panels);
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        char* out = base + t / a.mr * panel_bytes + t % a.mr * 4;
        Vec most = zero();
        for (int32_t i = 0; i < a.k; i += kGroupWeights) most = max_magnitude(most, Group(x + i, a.k - i).most());
        const float highest = reduce_magnitude(most);
        const bool live = !(highest <= kQuantizeFloor);
        a.scales[t] = live ? highest * (1.0f / 127.0f) * (1.0f / (1 << kMaxGroupShift)) : 0.0f;
        const float inverse = live ? 127.0f / highest : 0.0f;
        for (int32_t g = 0; g < groups; ++g, out += a.mr * kGroupTokenBytes) {
            const Group group(x + g * kGroupWeights, a.k - g * kGroupWeights);
            int32_t e = (bits_of(highest) - bits_of(reduce_magnitude(group.most()))) >> 23;
            e = e > kMaxGroupShift ? kMaxGroupShift : e;
            const int32_t shift = live ? kMaxGroupShift - e : 0;
            const Vec factor = set1(inverse * static_cast<float>(1 << e));
            __m256i sums = _mm256_setzero_si256();
            for (int i = 0; i < kVectors; ++i) {
                __m256i q = _mm256_cvtps_epi32(mul(group.v[i], factor).v);
                q = _mm256_max_epi32(_mm256_min_epi32(q, _mm256_set1_epi32(127)), _mm256_set1_epi32(-127));
                sums = _mm256_add_epi32(sums, q);
                const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
                const __m128i bytes = _mm_packs_epi16(words, words);
                const int32_t first = _mm_cvtsi128_si32(bytes), second = _mm_extract_epi32(bytes, 1);
                __builtin_memcpy(out + (2 * i) * tile, &first, 4);
                __builtin_memcpy(out + (2 * i + 1) * tile, &second, 4);
            }
            __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0x4e));
            sum = _mm_add_epi32(sum, _mm_shuffle_epi32(sum, 0xb1));
            const auto scaled = static_cast<float>(_mm_cvtsi128_si32(sum) * (1 << shift));
            __builtin_memcpy(out + 8 * tile, &shift, 4);
            __builtin_memcpy(out + 9 * tile, &scaled, 4);
        }
    }
    // Tokens that only fill the last panel.
    for (int32_t t = a.rows; t % a.mr; ++t) {
        char* out = base + t / a.mr * panel_bytes + t % a.mr * 4;
        for (int32_t i = 0; i < groups * 10; ++i, out += tile) __builtin_memset(out, 0, 4);
    }
}

}  // namespace approxrt
