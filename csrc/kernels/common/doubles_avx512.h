// Eight float64 lanes with AVX-512. Included only by avx512.cpp; see vec_avx2.h.
#pragma once

#include <immintrin.h>

namespace approxrt {
namespace {

struct Doubles {
    static constexpr int kWidth = 8;
    __m512d v;
};

inline Doubles load(const double* p) { return {_mm512_loadu_pd(p)}; }
inline void store(double* p, Doubles a) { _mm512_storeu_pd(p, a.v); }
inline Doubles set1(double x) { return {_mm512_set1_pd(x)}; }
inline Doubles zero() { return {_mm512_setzero_pd()}; }
inline Doubles sub(Doubles a, Doubles b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline Doubles div(Doubles a, Doubles b) { return {_mm512_div_pd(a.v, b.v)}; }
// a * b + c, and c - a * b.
inline Doubles fma(Doubles a, Doubles b, Doubles c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
inline Doubles fnma(Doubles a, Doubles b, Doubles c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }

}  // namespace
}  // namespace approxrt
