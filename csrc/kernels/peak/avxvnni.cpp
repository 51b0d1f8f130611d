// Register-only peak of vpdpbusd on ymm, 12 independent chains. One asm statement, so that nothing is spilled or moved.
#include <cstdint>

namespace approxrt {

int64_t peak_int8_avxvnni(int64_t iterations) {
    int64_t left = iterations;
    __asm__ volatile(
        "vzeroall\n\t"
        "1:\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm0\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm1\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm2\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm3\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm4\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm5\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm6\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm7\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm8\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm9\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm10\n\t"
        "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm11\n\t"
        "dec %[left]\n\tjnz 1b\n\tvzeroupper"
        : [left] "+r"(left)
        :
        : "cc", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11",
          "ymm12", "ymm13", "ymm14", "ymm15");
    return iterations * 12 * 32;
}

}  // namespace approxrt
