// GEMM of weights with float16 scales a group with vpdpbusd on zmm: a group's 32 products an output are 8 of them
// (zmm.h); two strips at a time where there are panels of tokens (pairs.h).
#pragma once

#include "pairs.h"

namespace approxrt {
namespace {

struct Vnni {
    static constexpr int kBits = 8;
    // Pinned by assembly, as in gemm_int8/avx512vnni.cpp.
    static inline __attribute__((always_inline)) void dot(__m512i q, const char* a, __m512i& acc) {
        __asm__("vpdpbusd %[a]%{1to16%}, %[q], %[acc]"
                : [acc] "+v"(acc)
                : [q] "v"(q), [a] "m"(*reinterpret_cast<const int32_t*>(a)));
    }
    static inline __attribute__((always_inline)) void dot(__m512i q, __m512i a, __m512i& acc) {
        __asm__("vpdpbusd %[a], %[q], %[acc]" : [acc] "+v"(acc) : [q] "v"(q), [a] "v"(a));
    }
    static inline __m512i sums(__m512i acc) { return acc; }
};

template <class Format, int kPanelRows>
void by_pairs(const GemmGroupsArgs& a) {
    GemmGroupsArgs rest = a;
    rest.strip_begin = gemm_groups_pairs<Format, Vnni, kPanelRows>(a);
    if (rest.strip_begin == rest.strip_end) return;
    const int64_t behind = rest.strip_begin - a.strip_begin;
    rest.y += behind * a.y_strip;
    if (rest.residual) rest.residual += behind * kTileN;
    GroupsZmm<Vnni, kPanelRows>::run(rest);
}

// Panels of kPanelRows tokens, or of a few.
template <int kPanelRows>
void gemm_groups_vnni(const GemmGroupsArgs& a) {
    if (a.mr != kPanelRows) {
        GroupsZmm<Vnni, kPanelRows>::run(a);
    } else if (a.w->bits == 4) {
        by_pairs<G4, kPanelRows>(a);
    } else if (a.w->bits == 6) {
        by_pairs<G6, kPanelRows>(a);
    } else {
        by_pairs<G8, kPanelRows>(a);
    }
}

}  // namespace
}  // namespace approxrt
