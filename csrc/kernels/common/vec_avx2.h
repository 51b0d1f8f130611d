// Eight float32 lanes with AVX2 and FMA. Included only by avx2.cpp and avxvnni.cpp; the anonymous namespace gives
// every unit its own copy, so that no AVX code can be linked into baseline units.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace approxrt {
namespace {

struct Vec {
    static constexpr int kWidth = 8;
    __m256 v;
};

inline __m256i lane_mask(int n) {
    alignas(32) static const int32_t kMask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(kMask + 8 - n));
}

inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
inline Vec load_n(const float* p, int n) { return {_mm256_maskload_ps(p, lane_mask(n))}; }
inline void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
inline void store_n(float* p, Vec a, int n) { _mm256_maskstore_ps(p, lane_mask(n), a.v); }
inline Vec set1(float x) { return {_mm256_set1_ps(x)}; }
inline Vec broadcast(const float* p) { return {_mm256_broadcast_ss(p)}; }
inline Vec zero() { return {_mm256_setzero_ps()}; }
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
// The larger of m and |x|, where m has no signs; NaN where either is NaN. Floats without signs order as their bits do,
// and NaN lies above infinity; maxps would forget a NaN that is not its second operand.
inline Vec max_magnitude(Vec m, Vec x) {
    return {_mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(m.v), _mm256_castps_si256(abs(x).v)))};
}
// Lanes n.. become `other`'s.
inline Vec keep_n(Vec a, Vec other, int n) {
    return {_mm256_blendv_ps(other.v, a.v, _mm256_castsi256_ps(lane_mask(n)))};
}
inline Vec load_i8(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
}
inline void store_i8(int8_t* p, Vec a) {
    const __m256i q = _mm256_cvtps_epi32(a.v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline Vec load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline float half_at(const uint16_t* p) { return _cvtsh_ss(*p); }
inline void store_f16(uint16_t* p, Vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// Eight nibbles q + 8 of four bytes, the low one of a byte first.
inline Vec load_i4(const uint8_t* p) {
    int32_t nibbles;
    __builtin_memcpy(&nibbles, p, 4);
    const __m256i shifted =
        _mm256_srlv_epi32(_mm256_set1_epi32(nibbles), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28));
    const __m256i q = _mm256_and_si256(shifted, _mm256_set1_epi32(15));
    return {_mm256_cvtepi32_ps(_mm256_sub_epi32(q, _mm256_set1_epi32(8)))};
}
inline Vec load_i32(const int32_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline Vec round_even(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// 2^n for integral n in [-126, 127].
inline Vec pow2(Vec n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
}
// Lane i gets lane i ^ H.
template <int H>
inline Vec swap_lanes(Vec a) {
    if constexpr (H == 1) return {_mm256_permute_ps(a.v, 0xb1)};
    if constexpr (H == 2) return {_mm256_permute_ps(a.v, 0x4e)};
    return {_mm256_permute2f128_ps(a.v, a.v, 1)};
}
inline float reduce_add(Vec a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
}
inline float reduce_max(Vec a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
}
// Of lanes without signs; NaN if one is.
inline float reduce_magnitude(Vec a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1))));
}

}  // namespace
}  // namespace approxrt

#include "vec_math.h"
