// Register-only peaks of AVX-512 without VNNI on zmm: exact int8 products by vpmaddwd with their sums, and float32 FMA.
// One asm statement a loop, so that nothing is spilled or moved.
#include <cstdint>

namespace approxrt {

// With the sums, unlike AVX2's peak: here they take the same two pipes as the products, not others.
int64_t peak_int8_avx512(int64_t iterations) {
    int64_t left = iterations;
    __asm__ volatile(
        "vzeroall\n\tvpxord %%zmm30, %%zmm30, %%zmm30\n\tvpxord %%zmm31, %%zmm31, %%zmm31\n\t"
        "1:\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm12\n\tvpaddd %%zmm12, %%zmm0, %%zmm0\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm13\n\tvpaddd %%zmm13, %%zmm1, %%zmm1\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm14\n\tvpaddd %%zmm14, %%zmm2, %%zmm2\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm15\n\tvpaddd %%zmm15, %%zmm3, %%zmm3\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm16\n\tvpaddd %%zmm16, %%zmm4, %%zmm4\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm17\n\tvpaddd %%zmm17, %%zmm5, %%zmm5\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm18\n\tvpaddd %%zmm18, %%zmm6, %%zmm6\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm19\n\tvpaddd %%zmm19, %%zmm7, %%zmm7\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm20\n\tvpaddd %%zmm20, %%zmm8, %%zmm8\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm21\n\tvpaddd %%zmm21, %%zmm9, %%zmm9\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm22\n\tvpaddd %%zmm22, %%zmm10, %%zmm10\n\t"
        "vpmaddwd %%zmm30, %%zmm31, %%zmm23\n\tvpaddd %%zmm23, %%zmm11, %%zmm11\n\t"
        "dec %[left]\n\tjnz 1b\n\tvzeroupper"
        : [left] "+r"(left)
        :
        : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
          "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",
          "xmm30", "xmm31");
    return iterations * 12 * 32;
}

int64_t peak_f32_avx512(int64_t iterations) {
    int64_t left = iterations;
    __asm__ volatile(
        "vzeroall\n\tvpxord %%zmm30, %%zmm30, %%zmm30\n\tvpxord %%zmm31, %%zmm31, %%zmm31\n\t"
        "1:\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm0\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm1\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm2\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm3\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm4\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm5\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm6\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm7\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm8\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm9\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm10\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm11\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm12\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm13\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm14\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm15\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm16\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm17\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm18\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm19\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm20\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm21\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm22\n\t"
        "vfmadd231ps %%zmm30, %%zmm31, %%zmm23\n\t"
        "dec %[left]\n\tjnz 1b\n\tvzeroupper"
        : [left] "+r"(left)
        :
        : "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
          "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23",
          "xmm30", "xmm31");
    return iterations * 24 * 16;
}

}  // namespace approxrt
