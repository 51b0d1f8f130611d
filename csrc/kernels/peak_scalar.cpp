// Peak of baseline code: what the compiler makes of plain loops.
#include <cstdint>

namespace approxrt {

int64_t peak_int8_scalar(int64_t iterations) {
    volatile int32_t sink = 0;
    int32_t acc[16] = {}, a = static_cast<int32_t>(iterations & 127);
    for (int64_t i = 0; i < iterations; ++i) {
        for (int j = 0; j < 16; ++j) acc[j] += a * (acc[j] & 127);
    }
    for (int v : acc) sink = sink + v;
    return iterations * 16;
}

int64_t peak_f32_scalar(int64_t iterations) {
    volatile float sink = 0;
    float acc[16] = {}, a = static_cast<float>(iterations & 1);
    for (int64_t i = 0; i < iterations; ++i) {
        for (int j = 0; j < 16; ++j) acc[j] = acc[j] * a + 0.5f;
    }
    for (float v : acc) sink = sink + v;
    return iterations * 16;
}

}  // namespace approxrt
