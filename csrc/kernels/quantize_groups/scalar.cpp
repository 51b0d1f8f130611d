// Quantisation with a scale a token and a power of two a group of 32 inputs: the definition (args.h).
#include <cstring>

#include "kernels/common/quantize_scalar.h"

namespace approxrt {

void quantize_groups_scalar(const QuantizeGroupsArgs& a) {
    const GroupPanels layout{a.mr};
    const auto groups = static_cast<int32_t>(round_up(a.k, kGroupWeights) / kGroupWeights);
    std::memset(a.panels, 0, layout.bytes(a.rows, a.k));
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        const int32_t highest_bits = peak_of(x, a.k);
        const auto highest = std::bit_cast<float>(highest_bits);
        const bool live = is_live(highest);
        a.scales[t] = live ? highest * (1.0f / 127.0f) * (1.0f / (1 << kMaxGroupShift)) : 0.0f;
        if (!live) continue;
        const float inverse = 127.0f / highest;
        char* panel = static_cast<char*>(a.panels) + t / a.mr * layout.panel_bytes(a.k);
        for (int32_t g = 0; g < groups; ++g, panel += static_cast<int64_t>(a.mr) * kGroupTokenBytes) {
            const int32_t begin = g * kGroupWeights, end = a.k < begin + kGroupWeights ? a.k : begin + kGroupWeights;
            // Of positive floats, the difference of the bits is that of the exponents, less one where the second has
            // the larger significand: how often it can be doubled. Never negative: the token's maximum is that of its
            // groups, of NaN's bits as well.
            const int32_t doublings = (highest_bits - peak_of(x + begin, end - begin)) >> 23;
            const int32_t e = doublings > kMaxGroupShift ? kMaxGroupShift : doublings, shift = kMaxGroupShift - e;
            const float factor = inverse * static_cast<float>(1 << e);
            int32_t sum = 0;
            for (int32_t i = begin; i < end; ++i) {
                const int8_t q = quantized(x[i] * factor);
                const int32_t at = i - begin;
                panel[(at / kTileK * a.mr + t % a.mr) * kTileK + at % kTileK] = static_cast<char>(q);
                sum += q;
            }
            const float scaled = static_cast<float>(sum * (1 << shift));
            std::memcpy(panel + kGroupWeights * a.mr + t % a.mr * 4, &shift, 4);
            std::memcpy(panel + (kGroupWeights + 4) * a.mr + t % a.mr * 4, &scaled, 4);
        }
    }
}

}  // namespace approxrt
