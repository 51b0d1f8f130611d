// int8 GEMM for AVX-512 VNNI, dense and block-sparse.
//
//   acc[t, 0..15] += u[t, k..k+3] . q[0..15, k..k+3]      one vpdpbusd, 64 products
//
// A tile of 16 outputs x 4 inputs is one zmm of weights. A token's group of 4 inputs is broadcast by a load from
// base + constant (panel layout, args.h). It cannot be the memory operand of vpdpbusd itself: that operand is the
// signed one, and ours is unsigned.
//
// 24 accumulators hide vpdpbusd's latency (4 to 5 cycles) and leave registers for weights and broadcasts in flight.
//   sparse  24 tokens x 1 strip: strips have tiles of different groups, so each product needs its own broadcast, which
//           CPUs with two 512-bit products a cycle cannot load: there, token_lanes_avx512vnni.h
//   dense   6 tokens x 4 strips, or 12 x 2: a broadcast serves them all. 10 or 14 loads for 24 products in place of 25
//           matter where two products a cycle can be had (Ice Lake: 1.7 times as fast); with one a cycle, loads hide
//
// vpdpbusd sums four products into int32 without saturation.
//
// u = q_x + 128, hence the correction 128 * sum of weights, constant an output.
#include "kernels/common/vec_avx512.h"

#include "args.h"
#include "blocks.h"
#include "kernels/common/products_avx512vnni.h"
#include "token_lanes_avx512vnni.h"

namespace approxrt {
namespace {

constexpr int kPanelRows = 24;
constexpr PanelLayout kLayout = byte_panels(kPanelRows);
constexpr int64_t kTileBytes = kTileN * kTileK;

// Of a sparse matrix.
template <int MR>
struct Rows {
    static void run(const Int8Block& block) {
        const GemmInt8Args& a = *block.a;
        const PackedInt8& w = *a.w;
        const int32_t begin = w.indptr[block.strip], end = w.indptr[block.strip + 1];
        const int8_t* tile = w.tiles + begin * kTileBytes;
        __m512i acc[1][MR];
#pragma GCC unroll 24
        for (int r = 0; r < MR; ++r) acc[0][r] = _mm512_setzero_si512();
        for (int32_t i = begin; i < end; ++i, tile += kTileBytes) {
            const __m512i of_tile[1] = {_mm512_load_si512(tile)};
            tile_products<MR, 1>(of_tile, block.panel + w.offsets[i], acc);
        }
        const __m512i correction = _mm512_load_si512(w.correction + static_cast<int64_t>(block.strip) * kTileN);
        alignas(64) int32_t sums[MR * kTileN];
#pragma GCC unroll 24
        for (int r = 0; r < MR; ++r) _mm512_store_si512(sums + r * kTileN, _mm512_sub_epi32(acc[0][r], correction));
        finish_int8(a, block.row, MR, block.strip, sums);
    }
};

// Up to kPanelRows tokens and kStrips strips of a dense matrix, in sub-blocks of at most 24 / kStrips tokens.
struct DenseBlock {
    const char* panel;
    const int8_t* tiles;  // of the first strip
    int64_t strip_bytes;  // from one strip's tiles to the next one's
    int32_t groups;
    const int32_t* correction;  // of the first strip
    int32_t* sums;              // [strips][kPanelRows][16], corrected
    const int8_t* next;         // tiles of a strip that is needed soon: one is fetched into L2 a step; null: none
};

template <int kStrips>
struct Dense {
    static constexpr int kRows = kPanelRows / kStrips;

    template <int MR>
    struct Rows {
        static void run(const DenseBlock& b) {
            const int8_t* tile = b.tiles;
            const char* x = b.panel;
            __m512i acc[kStrips][MR];
#pragma GCC unroll 4
            for (int s = 0; s < kStrips; ++s) {
                const __m512i less = _mm512_load_si512(b.correction + s * kTileN);
                acc[s][0] = _mm512_sub_epi32(_mm512_setzero_si512(), less);
#pragma GCC unroll 24
                for (int r = 1; r < MR; ++r) acc[s][r] = acc[s][0];
            }
            for (int32_t i = 0; i < b.groups; ++i, tile += kTileBytes, x += kLayout.group_bytes()) {
                if (b.next) _mm_prefetch(b.next + i * kTileBytes, _MM_HINT_T1);
                __m512i w[kStrips];
#pragma GCC unroll 4
                for (int s = 0; s < kStrips; ++s) w[s] = _mm512_load_si512(tile + s * b.strip_bytes);
                tile_products<MR, kStrips>(w, x, acc);
            }
#pragma GCC unroll 4
            for (int s = 0; s < kStrips; ++s)
#pragma GCC unroll 24
                for (int r = 0; r < MR; ++r) _mm512_store_si512(b.sums + (s * kPanelRows + r) * kTileN, acc[s][r]);
        }
    };

    // Strips begin .. begin + kStrips of all panels: their weights stay in L1 or L2 while panels stream by.
    static void run(const GemmInt8Args& a, int32_t begin) {
        const PackedInt8& w = *a.w;
        const int32_t groups = w.indptr[begin + 1] - w.indptr[begin];
        const int8_t* tiles = w.tiles + w.indptr[begin] * kTileBytes;
        const size_t panel_bytes = kLayout.panel_bytes(w.k);
        const char* panel = static_cast<const char*>(a.panels);
        alignas(64) int32_t sums[kStrips * kPanelRows * kTileN];
        for (int32_t t = 0; t < a.rows; t += kPanelRows, panel += panel_bytes) {
            const int32_t rows = a.rows - t < kPanelRows ? a.rows - t : kPanelRows;
            // In pieces of about one size: a piece of a token or two would have too few chains.
            const int32_t pieces = (rows + kRows - 1) / kRows;
            for (int32_t i = 0; i < pieces; ++i) {
                const int32_t first = rows * i / pieces, count = rows * (i + 1) / pieces - first;
                // The next strips' tiles come from L3 or further, and would be waited for: fetched while these are
                // used.
                const bool fetch = t == 0 && i < kStrips && begin + kStrips + i < w.strips;
                with_rows<kRows, Rows>(count,
                                       DenseBlock{panel + first * kTileK, tiles, groups * kTileBytes, groups,
                                                  w.correction + begin * int64_t{kTileN}, sums + first * kTileN,
                                                  fetch ? tiles + (kStrips + i) * groups * kTileBytes : nullptr});
            }
            for (int32_t s = 0; s < kStrips; ++s) finish_int8(a, t, rows, begin + s, sums + s * kPanelRows * kTileN);
        }
    }
};

// Panels are outside, as in blocks.h.
void gemm_in_token_lanes(const GemmInt8Args& a) {
    const size_t panel_bytes = kLayout.panel_bytes(a.w->k);
    const char* panel = static_cast<const char*>(a.panels);
    for (int32_t t = 0; t < a.rows;) {
        const int32_t left = a.rows - t;
        if (left >= kLeastLanes) {
            const int32_t rows = left < 2 * kPanelRows ? left : 2 * kPanelRows;
            strips_in_lanes(a, t, rows, panel, panel + panel_bytes);
            t += rows, panel += 2 * panel_bytes;
        } else {
            const int32_t rows = left < kPanelRows ? left : kPanelRows;
            for (int32_t g = a.strip_begin; g < a.strip_end; ++g)
                with_rows<kPanelRows, Rows>(rows, Int8Block{&a, panel, t, g});
            t += rows, panel += panel_bytes;
        }
    }
}

}  // namespace

void gemm_int8_avx512vnni(const GemmInt8Args& a) {
    if (a.w->token_lanes) return gemm_in_token_lanes(a);
    if (a.w->offsets) return gemm_int8_blocks<kPanelRows, Rows>(a, kLayout);
    int32_t strip = a.strip_begin;
    for (; strip + 4 <= a.strip_end; strip += 4) Dense<4>::run(a, strip);
    for (; strip + 2 <= a.strip_end; strip += 2) Dense<2>::run(a, strip);
    if (strip < a.strip_end) Dense<1>::run(a, strip);
}

}  // namespace approxrt
