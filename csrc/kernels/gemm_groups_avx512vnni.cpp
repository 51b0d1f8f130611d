// GEMM of weights with float16 scales a group for AVX-512 VNNI: a group's 32 products an output are 8 vpdpbusd
// (gemm_groups_zmm.h).
#include "gemm_groups_zmm.h"

namespace approxrt {
namespace {

struct Vnni {
    static constexpr int kBits = 8;
    // Pinned by assembly, as in gemm_int8_avx512vnni.cpp.
    static inline __attribute__((always_inline)) void dot(__m512i q, const char* a, __m512i& acc) {
        __asm__("vpdpbusd %[a]%{1to16%}, %[q], %[acc]"
                : [acc] "+v"(acc)
                : [q] "v"(q), [a] "m"(*reinterpret_cast<const int32_t*>(a)));
    }
    static inline __m512i sums(__m512i acc) { return acc; }
};

}  // namespace

void gemm_groups_avx512vnni(const GemmGroupsArgs& a) { GroupsZmm<Vnni, 24>::run(a); }

}  // namespace approxrt
