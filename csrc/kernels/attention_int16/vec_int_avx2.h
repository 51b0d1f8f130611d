// Pairs of 16-bit integers with AVX2: what body.h needs beside Vec. With AVX-VNNI (avxvnni.cpp) the
// product and the sum are one instruction.
#pragma once

#include "kernels/common/vec_avx2.h"

namespace approxrt {
namespace {

struct VecI {
    __m256i v;
};

inline VecI zero_i() { return {_mm256_setzero_si256()}; }
inline VecI load_i(const void* p) { return {_mm256_load_si256(static_cast<const __m256i*>(p))}; }
inline void store_i(int32_t* p, VecI a) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), a.v); }

// acc[lane] += pair(x) . pair(w[lane]): one query (or row of weights) against the lanes' keys (or columns).
// In assembly because GCC 12 otherwise spills the accumulators of a register block.
inline __attribute__((always_inline)) void multiply_add(const int16_t* x, const VecI (&w)[2], VecI (&acc)[2]) {
#ifdef __AVXVNNI__
    __m256i pair;
    __asm__(
        "vpbroadcastd %[x], %[pair]\n\t"
        "%{vex%} vpdpwssd %[w0], %[pair], %[a0]\n\t"
        "%{vex%} vpdpwssd %[w1], %[pair], %[a1]"
        : [a0] "+x"(acc[0].v), [a1] "+x"(acc[1].v), [pair] "=&x"(pair)
        : [w0] "x"(w[0].v), [w1] "x"(w[1].v), [x] "m"(*reinterpret_cast<const int32_t*>(x)));
#else
    __m256i p0, p1;
    __asm__(
        "vpbroadcastd %[x], %[p0]\n\t"
        "vpmaddwd %[w1], %[p0], %[p1]\n\t"
        "vpmaddwd %[w0], %[p0], %[p0]\n\t"
        "vpaddd %[p1], %[a1], %[a1]\n\t"
        "vpaddd %[p0], %[a0], %[a0]"
        : [a0] "+x"(acc[0].v), [a1] "+x"(acc[1].v), [p0] "=&x"(p0), [p1] "=&x"(p1)
        : [w0] "x"(w[0].v), [w1] "x"(w[1].v), [x] "m"(*reinterpret_cast<const int32_t*>(x)));
#endif
}

// `then` in lanes where a > b or a is NaN, else 0.
inline Vec above(Vec a, Vec b, Vec then) { return {_mm256_and_ps(_mm256_cmp_ps(a.v, b.v, _CMP_NLE_UQ), then.v)}; }

// Sixteen floats, rounded to nearest even, as 16-bit integers.
inline void store_i16(int16_t* p, const Vec (&x)[2]) {
    const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(x[0].v), _mm256_cvtps_epi32(x[1].v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

// p * 2^n, n being the integer in the low bits of `shifted` = n + 1.5 * 2^23; p in [0.5, 2), no overflow.
inline Vec scale_by_power(Vec p, Vec shifted) {
    return {_mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(p.v), _mm256_slli_epi32(_mm256_castps_si256(shifted.v), 23)))};
}

}  // namespace
}  // namespace approxrt
