// Per-token quantisation with AVX-512, into panels of bytes or of words. Included only by avx512*.cpp.
#pragma once

#include "vec_avx512.h"

#include "args.h"

namespace approxrt {
namespace {

// Sixteen inputs (four groups) as integers in [-127, 127]; NaN is converted to the least integer, and so to -127.
inline __m512i quantize16(__m512 x, __m512 inv) {
    const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(x, inv));
    return _mm512_max_epi32(_mm512_min_epi32(q, _mm512_set1_epi32(127)), _mm512_set1_epi32(-127));
}

// What a row of k inputs is multiplied with to become integers, and its scale (args.h).
inline __m512 row_inverse(const float* x, int32_t k, float* scale) {
    const int32_t whole = k / 16 * 16, rest = k - whole;
    Vec m = zero();
    for (int32_t i = 0; i < whole; i += 16) m = max_magnitude(m, load(x + i));
    if (rest) m = max_magnitude(m, load_n(x + whole, rest));
    const float highest = reduce_magnitude(m);
    const bool live = !(highest <= kQuantizeFloor);
    *scale = live ? highest * (1.0f / 127.0f) : 0.0f;
    return _mm512_set1_ps(live ? 127.0f / highest : 0.0f);
}

// A group of a token: 4 unsigned bytes q + 128.
struct Bytes {
    using Group = uint32_t;
    static constexpr Group kZeros = 0x80808080u;

    static void store(char* out, size_t group, __m512i q, int groups) {
        const __m128i u = _mm_xor_si128(_mm512_cvtepi32_epi8(q), _mm_set1_epi8(static_cast<char>(0x80)));
        const auto put = [&](int g, int32_t value) { __builtin_memcpy(out + g * group, &value, 4); };
        put(0, _mm_extract_epi32(u, 0));
        if (groups > 1) put(1, _mm_extract_epi32(u, 1));
        if (groups > 2) put(2, _mm_extract_epi32(u, 2));
        if (groups > 3) put(3, _mm_extract_epi32(u, 3));
    }
};

// A group of a token: 4 signed 16-bit values.
struct Words {
    using Group = uint64_t;
    static constexpr Group kZeros = 0;

    static void store(char* out, size_t group, __m512i q, int groups) {
        const __m256i words = _mm512_cvtepi32_epi16(q);
        const __m128i low = _mm256_castsi256_si128(words), high = _mm256_extracti128_si256(words, 1);
        const auto put = [&](int g, int64_t value) { __builtin_memcpy(out + g * group, &value, 8); };
        put(0, _mm_extract_epi64(low, 0));
        if (groups > 1) put(1, _mm_extract_epi64(low, 1));
        if (groups > 2) put(2, _mm_extract_epi64(high, 0));
        if (groups > 3) put(3, _mm_extract_epi64(high, 1));
    }
};

template <class Form>
inline void quantize_panels(const QuantizeRowsArgs& a, const PanelLayout& layout) {
    using Group = typename Form::Group;
    const size_t panel_bytes = layout.panel_bytes(a.k), group = layout.group_bytes();
    const int32_t whole = a.k / 16 * 16, rest = a.k - whole,
                  groups = static_cast<int32_t>(round_up(a.k, kTileK) / kTileK);
    char* base = static_cast<char*>(a.panels);
    const auto first_group = [&](int32_t t) {
        return base + (t / layout.mr) * panel_bytes + (t % layout.mr) * sizeof(Group);
    };
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        char* out = first_group(t);
        const __m512 inv = row_inverse(x, a.k, a.scales + t);
        for (int32_t i = 0; i < whole; i += 16, out += 4 * group)
            Form::store(out, group, quantize16(_mm512_loadu_ps(x + i), inv), 4);
        if (rest) Form::store(out, group, quantize16(load_n(x + whole, rest).v, inv), (rest + kTileK - 1) / kTileK);
    }
    // Tokens that only fill the last panel.
    for (int32_t t = a.rows; t % layout.mr; ++t) {
        char* out = first_group(t);
        for (int32_t g = 0; g < groups; ++g, out += group) __builtin_memcpy(out, &Form::kZeros, sizeof(Group));
    }
}

}  // namespace
}  // namespace approxrt
