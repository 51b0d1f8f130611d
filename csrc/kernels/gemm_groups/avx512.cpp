// GEMM of weights with float16 scales a group for AVX-512 without VNNI: vpmaddubsw sums pairs in 16 bits, which hold a
// group of 4-bit products: 16 * 15 * 128 = 30720 < 32767. Bytes are taken as two nibbles (zmm.h).
#include "zmm.h"

namespace approxrt {
namespace {

struct Words {
    static constexpr int kBits = 4;

    static inline __attribute__((always_inline)) void dot(__m512i q, const char* a, __m512i& acc) {
        __m512i p;
        __asm__(
            "vpbroadcastd %[a], %[p]\n\t"
            "vpmaddubsw %[p], %[q], %[p]\n\t"
            "vpaddw %[p], %[acc], %[acc]"
            : [acc] "+v"(acc), [p] "=&v"(p)
            : [q] "v"(q), [a] "m"(*reinterpret_cast<const int32_t*>(a)));
    }
    static inline __m512i sums(__m512i acc) { return _mm512_madd_epi16(acc, _mm512_set1_epi16(1)); }
};

}  // namespace

void gemm_groups_avx512(const GemmGroupsArgs& a) { GroupsZmm<Words, 12>::run(a); }

}  // namespace approxrt
