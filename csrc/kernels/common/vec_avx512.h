// Sixteen float32 lanes with AVX-512. Included only by avx512.cpp and avx512vnni.cpp; see vec_avx2.h.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace approxrt {
namespace {

struct Vec {
    static constexpr int kWidth = 16;
    __m512 v;
};

inline __mmask16 lane_mask(int n) { return static_cast<__mmask16>((1u << n) - 1u); }

inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline Vec load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(lane_mask(n), p)}; }
inline void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
inline void store_n(float* p, Vec a, int n) { _mm512_mask_storeu_ps(p, lane_mask(n), a.v); }
inline Vec set1(float x) { return {_mm512_set1_ps(x)}; }
inline Vec broadcast(const float* p) { return {_mm512_set1_ps(*p)}; }
inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
// See vec_avx2.h.
inline Vec max_magnitude(Vec m, Vec x) {
    return {_mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(m.v), _mm512_castps_si512(abs(x).v)))};
}
inline Vec keep_n(Vec a, Vec other, int n) { return {_mm512_mask_mov_ps(other.v, lane_mask(n), a.v)}; }
inline Vec load_i8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
inline void store_i8(int8_t* p, Vec a) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
inline Vec load_f16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline float half_at(const uint16_t* p) { return _cvtsh_ss(*p); }
inline void store_f16(uint16_t* p, Vec a) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// Sixteen nibbles q + 8 of eight bytes, the low one of a byte first.
inline Vec load_i4(const uint8_t* p) {
    int32_t nibbles[2];
    __builtin_memcpy(nibbles, p, 8);
    const __m512i both = _mm512_inserti64x4(_mm512_set1_epi32(nibbles[0]), _mm256_set1_epi32(nibbles[1]), 1);
    const __m512i shifts = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 4, 8, 12, 16, 20, 24, 28);
    const __m512i q = _mm512_and_si512(_mm512_srlv_epi32(both, shifts), _mm512_set1_epi32(15));
    return {_mm512_cvtepi32_ps(_mm512_sub_epi32(q, _mm512_set1_epi32(8)))};
}
inline Vec load_i32(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
inline Vec round_even(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec pow2(Vec n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
}
// Lane i gets lane i ^ H.
template <int H>
inline Vec swap_lanes(Vec a) {
    if constexpr (H == 1) return {_mm512_permute_ps(a.v, 0xb1)};
    if constexpr (H == 2) return {_mm512_permute_ps(a.v, 0x4e)};
    if constexpr (H == 4) return {_mm512_shuffle_f32x4(a.v, a.v, 0xb1)};
    return {_mm512_shuffle_f32x4(a.v, a.v, 0x4e)};
}
inline float reduce_add(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float reduce_max(Vec a) { return _mm512_reduce_max_ps(a.v); }
inline float reduce_magnitude(Vec a) {
    const int32_t bits = _mm512_reduce_max_epi32(_mm512_castps_si512(a.v));
    float x;
    __builtin_memcpy(&x, &bits, sizeof x);
    return x;
}

}  // namespace
}  // namespace approxrt

#include "vec_math.h"
