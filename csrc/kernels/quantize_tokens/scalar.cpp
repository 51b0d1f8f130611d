// Per-token quantisation into rows in one piece: quantize_rows' integers, the definition.
#include <cstring>

#include "decoder_args.h"
#include "kernels/common/quantize_scalar.h"

namespace approxrt {

void quantize_tokens_scalar(const QuantizeTokensArgs& a) {
    const TokenRows& to = a.to;
    for (int32_t t = 0; t < to.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        int8_t* q = to.q + t * to.ld;
        const auto max = std::bit_cast<float>(peak_of(x, to.k));
        const bool live = is_live(max);
        to.scales[t] = live ? max * (1.0f / 127.0f) : 0.0f;
        const float inv = live ? 127.0f / max : 0.0f;
        std::memset(q, 0, to.ld);
        for (int32_t i = 0; i < to.k; ++i) q[i] = quantized(x[i] * inv);
        for (int64_t i = 0; i < to.ld; ++i) to.u[t * to.ld + i] = static_cast<uint8_t>(q[i] + 128);
        for (int64_t g = 0; g < to.ld / kGroupWeights; ++g) {
            int32_t sum = 0;
            for (int i = 0; i < kGroupWeights; ++i) sum += q[g * kGroupWeights + i];
            to.sums[t * (to.ld / kGroupWeights) + g] = sum;
        }
    }
}

}  // namespace approxrt
