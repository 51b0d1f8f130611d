// Register-only peak of tdpbusd, six independent sums.
#include <cstdint>

namespace approxrt {

int64_t peak_int8_amx(int64_t iterations) {
    struct alignas(64) {
        uint8_t palette = 1, start_row = 0;
        uint8_t reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } const shape;
    int64_t left = iterations;
    __asm__ volatile(
        "ldtilecfg %[shape]\n\t"
        "1:\n\t"
        "tdpbusd %%tmm7, %%tmm6, %%tmm0\n\t"
        "tdpbusd %%tmm7, %%tmm6, %%tmm1\n\t"
        "tdpbusd %%tmm7, %%tmm6, %%tmm2\n\t"
        "tdpbusd %%tmm7, %%tmm6, %%tmm3\n\t"
        "tdpbusd %%tmm7, %%tmm6, %%tmm4\n\t"
        "tdpbusd %%tmm7, %%tmm6, %%tmm5\n\t"
        "dec %[left]\n\tjnz 1b\n\ttilerelease"
        : [left] "+r"(left)
        : [shape] "m"(shape)
        : "cc");
    return iterations * 6 * 16 * 16 * 64;
}

}  // namespace approxrt
