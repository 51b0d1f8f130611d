// Hadamard transforms of blocks of a row: the definition, by Sylvester's construction in butterflies.
#include <cmath>

#include "decoder_args.h"

namespace approxrt {

void hadamard_scalar(const HadamardArgs& a) {
    const float scale = 1.0f / std::sqrt(static_cast<float>(a.size));
    for (int32_t t = 0; t < a.rows; ++t)
        for (int32_t begin = 0; begin < a.width; begin += a.size) {
            float block[kLargestHadamard];
            for (int32_t i = 0; i < a.size; ++i) block[i] = a.x[t * a.ldx + begin + i];
            for (int32_t h = 1; h < a.size; h *= 2)
                for (int32_t i = 0; i < a.size; ++i)
                    if (!(i & h)) {
                        const float first = block[i], second = block[i + h];
                        block[i] = first + second;
                        block[i + h] = first - second;
                    }
            for (int32_t i = 0; i < a.size; ++i) a.y[t * a.ldy + begin + i] = block[i] * scale;
        }
}

}  // namespace approxrt
