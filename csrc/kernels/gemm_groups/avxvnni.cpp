// GEMM of weights with float16 scales a group for AVX-VNNI: vpdpbusd on ymm (ymm.h).
#include "ymm.h"

namespace approxrt {
namespace {

struct Vnni {
    static constexpr int kBits = 8;

    static inline __attribute__((always_inline)) void dot(__m256i q0, __m256i q1, const char* a, __m256i (&acc)[2]) {
        __m256i p;
        __asm__(
            "vpbroadcastd %[a], %[p]\n\t"
            "%{vex%} vpdpbusd %[p], %[q0], %[a0]\n\t"
            "%{vex%} vpdpbusd %[p], %[q1], %[a1]"
            : [a0] "+x"(acc[0]), [a1] "+x"(acc[1]), [p] "=&x"(p)
            : [q0] "x"(q0), [q1] "x"(q1), [a] "m"(*reinterpret_cast<const int32_t*>(a)));
    }
    static inline __m256i sums(__m256i acc) { return acc; }
};

}  // namespace

void gemm_groups_avxvnni(const GemmGroupsArgs& a) { GroupsYmm<Vnni>::run(a); }

}  // namespace approxrt
