// Exact logits of single words: the definition (decoder_args.h), which is that of gemm_groups with q + 128 for q.
#include <cmath>
#include <cstring>

#include "decoder_args.h"
#include "half.h"

namespace approxrt {

void word_logits_scalar(const WordLogitsArgs& a) {
    const int64_t groups = round_up(a.k, kGroupWeights) / kGroupWeights;
    for (int32_t i = 0; i < a.count; ++i) {
        const int64_t word = a.ids[i];
        const int8_t* row = a.q + word * a.k;
        const char* block = static_cast<const char*>(a.panel);
        float sum = 0.0f;
        for (int64_t g = 0; g < groups; ++g, block += kGroupTokenBytes) {
            int32_t shift;
            float inputs;
            std::memcpy(&shift, block + kGroupWeights, 4);
            std::memcpy(&inputs, block + kGroupWeights + 4, 4);
            int32_t acc = 0;
            for (int64_t j = g * kGroupWeights; j < (g + 1) * kGroupWeights && j < a.k; ++j)
                acc += (row[j] + 128) * static_cast<int8_t>(block[j % kGroupWeights]);
            const float d = float_from_half(a.scale[word * groups + g]);
            sum = std::fma(static_cast<float>(acc * (1 << shift)), d, sum);
            sum = std::fma(inputs, d * -128.0f, sum);
        }
        a.logits[word] = std::fma(sum, a.act_scale, 0.0f);
    }
}

}  // namespace approxrt
