// The order in which a GEMM of group-scaled weights visits its register blocks: strips outside, so that a strip's
// weights (15 KB of int4 for 1,536 inputs) stay in L1 while panels stream by; and what follows a block's sums.
//
// Nibbles are unpacked in registers anew for every block of tokens: 12 instructions a group, which go to pipes that
// products leave idle. Bytes kept in memory would cost twice the loads instead.
#pragma once

#include "args.h"
#include "decoder_args.h"
#include "kernels/common/epilogue.h"
#include "kernels/common/with_rows.h"

namespace approxrt {
namespace {

// One strip and the tokens of one block.
struct GroupsBlock {
    const uint8_t* w;  // of the strip's first group
    const char* x;     // the block's first token in the panel's first group
    int32_t groups;
    int32_t mr;   // of the panel
    float* sums;  // [rows][16], written
};

// The formats. kScales: where a block's scales begin.
struct G4 {
    static constexpr int kBits = 4, kBytes = kG4BlockBytes, kScales = 256;
};
struct G6 {
    static constexpr int kBits = 6, kBytes = kG6BlockBytes, kScales = 384;
};
struct G8 {
    static constexpr int kBits = 8, kBytes = kG8BlockBytes, kScales = 512;
};

// y <- act(sums * s_t + bias) (+ residual) of tokens row .. row + rows - 1.
[[maybe_unused]] __attribute__((noinline)) void finish_groups(const GemmGroupsArgs& a, int32_t row, int32_t rows,
                                                              int32_t strip, const float* sums) {
    constexpr int W = Vec::kWidth, kCount = kTileN / W;
    const int64_t behind = strip - a.strip_begin;
    with_act(a.act, [&](auto act) {
        // Copies, as in finish_int8.
        const float *from = sums, *scales = a.act_scales + row;
        const int64_t ldy = a.ldy, ldr = a.ldr;
        float* out = a.y + behind * a.y_strip + row * ldy;
        const float* residual = a.residual ? a.residual + behind * kTileN + row * ldr : nullptr;
        Vec bias[kCount];
        for (int v = 0; v < kCount; ++v) bias[v] = load(a.w->bias + static_cast<int64_t>(strip) * kTileN + v * W);
        for (int32_t r = rows; r; --r, from += kTileN, ++scales, out += ldy) {
            const Vec s = broadcast(scales);
            Vec y[kCount];
            for (int v = 0; v < kCount; ++v) y[v] = act(fma(load(from + v * W), s, bias[v]));
            if (residual) {
                for (int v = 0; v < kCount; ++v) y[v] = add(y[v], load(residual + v * W));
                residual += ldr;
            }
            for (int v = 0; v < kCount; ++v) store(out + v * W, y[v]);
        }
    });
}

// Blocks of at most kRows tokens, by Rows<tokens>::run(GroupsBlock).
template <int kRows, template <int> class Rows>
inline void gemm_groups_blocks(const GemmGroupsArgs& a) {
    const size_t panel_bytes = GroupPanels{a.mr}.panel_bytes(a.w->k);
    alignas(64) float sums[kRows * kTileN];
    for (int32_t g = a.strip_begin; g < a.strip_end; ++g) {
        const uint8_t* w = a.w->blocks + g * a.w->groups * a.w->block_bytes();
        const char* panel = static_cast<const char*>(a.panels);
        for (int32_t first = 0; first < a.rows; first += a.mr, panel += panel_bytes) {
            const int32_t end = a.rows - first < a.mr ? a.rows - first : a.mr;
            for (int32_t r = 0; r < end; r += kRows) {
                const int32_t rows = end - r < kRows ? end - r : kRows;
                with_rows<kRows, Rows>(rows, GroupsBlock{w, panel + r * kTileK, a.w->groups, a.mr, sums});
                finish_groups(a, first + r, rows, g, sums);
            }
        }
    }
}

}  // namespace
}  // namespace approxrt
