// GEMM of weights with float16 scales a group for AVX2: vpmaddubsw sums pairs in 16 bits, which hold a
// group of 4-bit products: 16 * 15 * 128 = 30720 < 32767. Bytes are taken as two nibbles (ymm.h).
#include "ymm.h"

namespace approxrt {
namespace {

struct Words {
    static constexpr int kBits = 4;

    // In assembly because GCC 12 otherwise spills the accumulators.
    static inline __attribute__((always_inline)) void dot(__m256i q0, __m256i q1, const char* a, __m256i (&acc)[2]) {
        __m256i p0, p1;
        __asm__(
            "vpbroadcastd %[a], %[p0]\n\t"
            "vpmaddubsw %[p0], %[q1], %[p1]\n\t"
            "vpmaddubsw %[p0], %[q0], %[p0]\n\t"
            "vpaddw %[p1], %[a1], %[a1]\n\t"
            "vpaddw %[p0], %[a0], %[a0]"
            : [a0] "+x"(acc[0]), [a1] "+x"(acc[1]), [p0] "=&x"(p0), [p1] "=&x"(p1)
            : [q0] "x"(q0), [q1] "x"(q1), [a] "m"(*reinterpret_cast<const int32_t*>(a)));
    }
    static inline __m256i sums(__m256i acc) { return _mm256_madd_epi16(acc, _mm256_set1_epi16(1)); }
};

}  // namespace

void gemm_groups_avx2(const GemmGroupsArgs& a) { GroupsYmm<Words>::run(a); }

}  // namespace approxrt
