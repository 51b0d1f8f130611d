// f32 GEMM on Vec: strips outside, blocks of rows inside, so that a strip's weights stay in L1.
#pragma once

#include "../args.h"
#include "epilogue.h"
#include "micro_f32.h"
#include "with_rows.h"

namespace approxrt {
namespace {

struct GemmF32Block {
    const GemmF32Args* a;
    int32_t row, strip;
};

template <int MR>
struct GemmF32Rows {
    static void run(const GemmF32Block& block) {
        const GemmF32Args& a = *block.a;
        const PackedF32& w = *a.w;
        const int64_t column = static_cast<int64_t>(block.strip) * kTileN;
        Vec c[MR][kVecs];
        micro_f32<MR>(a.x + block.row * a.ldx, a.ldx, w.w + column * w.k, w.k, c);
        alignas(64) float sums[MR * kTileN];
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < kVecs; ++v) store(sums + r * kTileN + v * Vec::kWidth, c[r][v]);
        finish_f32(a, block.row, MR, block.strip, sums);
    }
};

template <int MR>
inline void gemm_f32(const GemmF32Args& a) {
    for (int32_t g = a.strip_begin; g < a.strip_end; ++g)
        for (int32_t t = 0; t < a.rows; t += MR)
            with_rows<MR, GemmF32Rows>(a.rows - t < MR ? a.rows - t : MR, GemmF32Block{&a, t, g});
}

}  // namespace
}  // namespace approxrt
