// Pairs of 16-bit integers with AVX-512: see vec_int_avx2.h. With VNNI the product and the sum are one instruction.
#pragma once

#include "kernels/common/vec_avx512.h"

namespace approxrt {
namespace {

struct VecI {
    __m512i v;
};

inline VecI zero_i() { return {_mm512_setzero_si512()}; }
inline VecI load_i(const void* p) { return {_mm512_load_si512(p)}; }
inline void store_i(int32_t* p, VecI a) { _mm512_store_si512(p, a.v); }

inline __attribute__((always_inline)) void multiply_add(const int16_t* x, const VecI (&w)[1], VecI (&acc)[1]) {
#ifdef __AVX512VNNI__
    __asm__("vpdpwssd %[x]%{1to16%}, %[w], %[acc]"
            : [acc] "+v"(acc[0].v)
            : [w] "v"(w[0].v), [x] "m"(*reinterpret_cast<const int32_t*>(x)));
#else
    __m512i product;
    __asm__(
        "vpbroadcastd %[x], %[product]\n\t"
        "vpmaddwd %[w], %[product], %[product]\n\t"
        "vpaddd %[product], %[acc], %[acc]"
        : [acc] "+v"(acc[0].v), [product] "=&v"(product)
        : [w] "v"(w[0].v), [x] "m"(*reinterpret_cast<const int32_t*>(x)));
#endif
}

// The same for two vectors of w, by one load of x: processors with two such products a cycle lack the loads for one
// each.
inline __attribute__((always_inline)) void multiply_add(const int16_t* x, const VecI (&w)[2], VecI (&acc)[2]) {
    int32_t pair;
    __builtin_memcpy(&pair, x, sizeof pair);
    const __m512i both = _mm512_set1_epi32(pair);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
#ifdef __AVX512VNNI__
        __asm__("vpdpwssd %[x], %[w], %[acc]" : [acc] "+v"(acc[v].v) : [w] "v"(w[v].v), [x] "v"(both));
#else
        __m512i product;
        __asm__(
            "vpmaddwd %[w], %[x], %[product]\n\t"
            "vpaddd %[product], %[acc], %[acc]"
            : [acc] "+v"(acc[v].v), [product] "=&v"(product)
            : [w] "v"(w[v].v), [x] "v"(both));
#endif
    }
}

inline Vec above(Vec a, Vec b, Vec then) {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLE_UQ), then.v)};
}

inline void store_i16(int16_t* p, const Vec (&x)[1]) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(x[0].v)));
}

inline Vec scale_by_power(Vec p, Vec shifted) {
    return {_mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(p.v), _mm512_slli_epi32(_mm512_castps_si512(shifted.v), 23)))};
}

}  // namespace
}  // namespace approxrt
