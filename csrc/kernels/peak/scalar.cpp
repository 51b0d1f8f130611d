// Peak of baseline code: what the compiler makes of plain loops. The empty asm statement hides a factor,
// without which the compiler computes the sums in advance.
#include <cstdint>

namespace approxrt {

namespace {
constexpr int kSums = 32;
}

int64_t peak_int8_scalar(int64_t iterations) {
    volatile int32_t sink = 0;
    int32_t acc[kSums] = {}, a = static_cast<int32_t>(iterations & 7);
    int16_t w[kSums];
    for (int j = 0; j < kSums; ++j) w[j] = static_cast<int16_t>((j + iterations) & 3);
    for (int64_t i = 0; i < iterations; ++i) {
        __asm__ volatile("" : "+r"(a));
        for (int j = 0; j < kSums; ++j) acc[j] += w[j] * static_cast<int16_t>(a);
    }
    for (int32_t v : acc) sink = sink + v;
    return iterations * kSums;
}

int64_t peak_f32_scalar(int64_t iterations) {
    volatile float sink = 0;
    float acc[kSums] = {}, a = static_cast<float>(iterations & 1);
    for (int64_t i = 0; i < iterations; ++i) {
        for (int j = 0; j < kSums; ++j) acc[j] = acc[j] * a + 0.5f;
    }
    for (float v : acc) sink = sink + v;
    return iterations * kSums;
}

}  // namespace approxrt
