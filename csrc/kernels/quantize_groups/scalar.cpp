// Quantisation with a scale a token and a power of two a group of 32 inputs: the definition (args.h).
#include <cmath>
#include <cstring>

#include "args.h"

namespace approxrt {
namespace {

int32_t bits_of(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

}  // namespace

void quantize_groups_scalar(const QuantizeGroupsArgs& a) {
    const GroupPanels layout{a.mr};
    const auto groups = static_cast<int32_t>(round_up(a.k, kGroupWeights) / kGroupWeights);
    std::memset(a.panels, 0, layout.bytes(a.rows, a.k));
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        float highest = 0.0f;
        for (int32_t i = 0; i < a.k; ++i) highest = std::fabs(x[i]) > highest ? std::fabs(x[i]) : highest;
        const bool live = highest > kQuantizeFloor;
        a.scales[t] = live ? highest * (1.0f / 127.0f) * (1.0f / (1 << kMaxGroupShift)) : 0.0f;
        if (!live) continue;
        const float inverse = 127.0f / highest;
        char* panel = static_cast<char*>(a.panels) + t / a.mr * layout.panel_bytes(a.k);
        for (int32_t g = 0; g < groups; ++g, panel += static_cast<int64_t>(a.mr) * kGroupTokenBytes) {
            const int32_t begin = g * kGroupWeights, end = a.k < begin + kGroupWeights ? a.k : begin + kGroupWeights;
            float peak = 0.0f;
            for (int32_t i = begin; i < end; ++i) peak = std::fabs(x[i]) > peak ? std::fabs(x[i]) : peak;
            // Of positive floats, the difference of the bits is that of the exponents, less one where the second has
            // the larger significand: how often it can be doubled.
            const int32_t doublings = (bits_of(highest) - bits_of(peak)) >> 23;
            const int32_t e = doublings > kMaxGroupShift ? kMaxGroupShift : doublings, shift = kMaxGroupShift - e;
            const float factor = inverse * static_cast<float>(1 << e);
            int32_t sum = 0;
            for (int32_t i = begin; i < end; ++i) {
                const float r = std::nearbyintf(x[i] * factor);
                const auto q = static_cast<int8_t>(r > 127.0f ? 127.0f : (r < -127.0f ? -127.0f : r));
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
