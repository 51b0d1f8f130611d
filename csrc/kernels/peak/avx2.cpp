// Register-only peaks of AVX2: exact int8 products by vpmaddwd, and float32 FMA, 12 independent
// chains each. One asm statement a loop, so that nothing is spilled or moved.
#include <cstdint>

namespace approxrt {

// Multiplications only: the additions that follow them take the other two vector pipes when all goes well.
int64_t peak_int8_avx2(int64_t iterations) {
    int64_t left = iterations;
    __asm__ volatile(
        "vzeroall\n\t"
        "1:\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm0\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm1\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm2\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm3\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm4\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm5\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm6\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm7\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm8\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm9\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm10\n\t"
        "vpmaddwd %%ymm12, %%ymm13, %%ymm11\n\t"
        "dec %[left]\n\tjnz 1b\n\tvzeroupper"
        : [left] "+r"(left)
        :
        : "cc", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11",
          "ymm12", "ymm13");
    return iterations * 12 * 16;
}

int64_t peak_f32_avx2(int64_t iterations) {
    int64_t left = iterations;
    __asm__ volatile(
        "vzeroall\n\t"
        "1:\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm0\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm1\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm2\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm3\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm4\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm5\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm6\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm7\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm8\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm9\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm10\n\t"
        "vfmadd231ps %%ymm12, %%ymm13, %%ymm11\n\t"
        "dec %[left]\n\tjnz 1b\n\tvzeroupper"
        : [left] "+r"(left)
        :
        : "cc", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11",
          "ymm12", "ymm13", "ymm14", "ymm15");
    return iterations * 12 * 8;
}

}  // namespace approxrt
