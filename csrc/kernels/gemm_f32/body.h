// f32 GEMM on Vec: strips outside, blocks of rows inside, so that a strip's weights stay in L1.
#pragma once

#include "args.h"
#include "kernels/common/epilogue.h"
#include "kernels/common/micro_f32.h"
#include "kernels/common/with_rows.h"

namespace approxrt {
namespace {

// With AVX-512: strips that share broadcasts, as long as there are so many.
constexpr int kWideStrips = 2;

struct GemmF32Block {
    const GemmF32Args* a;
    int32_t row, strip;
};

// Strips from `strip` on, kStrips of them.
template <int kStrips>
struct GemmF32 {
    template <int MR>
    struct Rows {
        static void run(const GemmF32Block& block) {
            const GemmF32Args& a = *block.a;
            const PackedF32& w = *a.w;
            const int64_t strip = static_cast<int64_t>(kTileN) * w.k;
            Vec c[MR][kStrips * kVecs];
            micro_f32_strips<MR, kStrips>(a.x + block.row * a.ldx, a.ldx, w.w + block.strip * strip, strip, w.k, c);
            alignas(64) float sums[kStrips * MR * kTileN];
#pragma GCC unroll 12
            for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
                for (int v = 0; v < kStrips * kVecs; ++v)
                    store(sums + (v / kVecs * MR + r) * kTileN + v % kVecs * Vec::kWidth, c[r][v]);
            for (int s = 0; s < kStrips; ++s) finish_f32(a, block.row, MR, block.strip + s, sums + s * MR * kTileN);
        }
    };

    // What is left of the rows is divided evenly: blocks of a row or two would have too few sums in flight.
    template <int MR>
    static void run(const GemmF32Args& a, int32_t strip) {
        const int32_t blocks = (a.rows + MR - 1) / MR;
        for (int32_t i = 0; i < blocks; ++i) {
            const auto begin = static_cast<int32_t>(static_cast<int64_t>(a.rows) * i / blocks);
            const auto end = static_cast<int32_t>(static_cast<int64_t>(a.rows) * (i + 1) / blocks);
            with_rows<MR, Rows>(end - begin, GemmF32Block{&a, begin, strip});
        }
    }
};

template <int MR>
inline void gemm_f32(const GemmF32Args& a) {
    int32_t g = a.strip_begin;
    if constexpr (kVecs == 1)
        for (; g + kWideStrips <= a.strip_end; g += kWideStrips)
            GemmF32<kWideStrips>::template run<24 / kWideStrips>(a, g);
    for (; g < a.strip_end; ++g) GemmF32<1>::template run<MR>(a, g);
}

}  // namespace
}  // namespace approxrt
