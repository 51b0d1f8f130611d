// GEMM of weights with float16 scales a group: the definition (args.h).
#include <cmath>
#include <cstring>

#include "args.h"
#include "half.h"

namespace approxrt {

float activate_scalar(float x, Act act);

namespace {

float half_at(const uint8_t* p, int i) {
    uint16_t half;
    std::memcpy(&half, p + 2 * i, 2);
    return float_from_half(half);
}

// Input i of output o.
int weight_at(const uint8_t* block, int bits, int o, int i) {
    const int tile = i / kTileK, byte = o * kTileK + i % kTileK;
    if (bits == 8) return block[tile * 64 + byte];
    const uint8_t both = block[tile / 2 * 64 + byte];
    const int nibble = tile % 2 ? both >> 4 : both & 15;
    return bits == 4 ? nibble : nibble | (block[256 + tile / 4 * 64 + byte] >> 2 * (tile % 4) & 3) << 4;
}

}  // namespace

void gemm_groups_scalar(const GemmGroupsArgs& a) {
    const PackedGroups& w = *a.w;
    const size_t panel_bytes = GroupPanels{a.mr}.panel_bytes(w.k);
    const int64_t block_bytes = w.block_bytes();
    for (int32_t s = a.strip_begin; s < a.strip_end; ++s) {
        const int64_t column = static_cast<int64_t>(s) * kTileN, behind = s - a.strip_begin;
        for (int32_t t = 0; t < a.rows; ++t) {
            const uint8_t* block = w.blocks + s * w.groups * block_bytes;
            const char* panel = static_cast<const char*>(a.panels) + t / a.mr * panel_bytes;
            const int32_t lane = t % a.mr;
            float sum[kTileN] = {};
            for (int32_t g = 0; g < w.groups; ++g, block += block_bytes, panel += int64_t{a.mr} * kGroupTokenBytes) {
                int32_t shift;
                float inputs;
                std::memcpy(&shift, panel + kGroupWeights * a.mr + lane * 4, 4);
                std::memcpy(&inputs, panel + (kGroupWeights + 4) * a.mr + lane * 4, 4);
                const uint8_t* scales = block + kGroupWeights * w.bits * kTileN / 8;
                for (int o = 0; o < kTileN; ++o) {
                    int32_t acc = 0;
                    for (int i = 0; i < kGroupWeights; ++i) {
                        const int at = (i / kTileK * a.mr + lane) * kTileK + i % kTileK;
                        acc += weight_at(block, w.bits, o, i) * static_cast<int8_t>(panel[at]);
                    }
                    const float d = half_at(scales, o);
                    const float m =
                        w.bits == 4 ? half_at(scales, kTileN + o) : d * -static_cast<float>(1 << (w.bits - 1));
                    sum[o] = std::fma(static_cast<float>(acc * (1 << shift)), d, sum[o]);
                    sum[o] = std::fma(inputs, m, sum[o]);
                }
            }
            for (int o = 0; o < kTileN; ++o) {
                float y = activate_scalar(std::fma(sum[o], a.act_scales[t], w.bias[column + o]), a.act);
                if (a.residual) y += a.residual[t * a.ldr + behind * kTileN + o];
                a.y[behind * a.y_strip + t * a.ldy + o] = y;
            }
        }
    }
}

}  // namespace approxrt
