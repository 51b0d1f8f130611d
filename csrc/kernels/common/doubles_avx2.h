// Four float64 lanes with AVX2. Included only by avx2.cpp; see vec_avx2.h.
#pragma once

#include <immintrin.h>

namespace approxrt {
namespace {

struct Doubles {
    static constexpr int kWidth = 4;
    __m256d v;
};

inline Doubles load(const double* p) { return {_mm256_loadu_pd(p)}; }
inline void store(double* p, Doubles a) { _mm256_storeu_pd(p, a.v); }
inline Doubles set1(double x) { return {_mm256_set1_pd(x)}; }
inline Doubles zero() { return {_mm256_setzero_pd()}; }
inline Doubles sub(Doubles a, Doubles b) { return {_mm256_sub_pd(a.v, b.v)}; }
inline Doubles div(Doubles a, Doubles b) { return {_mm256_div_pd(a.v, b.v)}; }
// a * b + c, and c - a * b.
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
inline Doubles fnma(Doubles a, Doubles b, Doubles c) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }

}  // namespace
}  // namespace approxrt
