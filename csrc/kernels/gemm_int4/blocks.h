// The order in which an int4 GEMM visits its register blocks, and where nibbles become bytes.
//
// Up to kTokens tokens are taken at a time; strips run inside. A strip's tiles come in chunks. With one panel of
// tokens a chunk's nibbles are expanded in registers, since nothing would use the bytes again. With more, they
// are expanded once into `bytes` (L1, on the stack: never for longer than this chunk), which all panels then
// read. Sums of the tokens wait in L1 between chunks.
//
// With AVX-512 VNNI two dense strips go together, so that both use a token's broadcast (gemm_int8/avx512vnni.cpp).
//
// One order for dense and sparse, unlike int8's: strips outside panels, because that is what expanding once
// needs. Panels of 96 tokens lie in L2, and sparse tiles that pick from them cost less than expanding again for
// every few panels: taking only what fits L1 was slower with 384, 1,536 and 3,072 inputs at densities 0.1, 0.25.
#pragma once

#include "args.h"
#include "kernels/common/epilogue.h"
#include "kernels/common/with_rows.h"

namespace approxrt {
namespace {

constexpr int32_t kTokens = 96;       // a multiple of every panel's tokens
constexpr int32_t kChunkTiles = 128;  // 8 KB of bytes, 16 groups

// A chunk of one strip for one panel.
struct Int4Block {
    const char* panel;        // of the chunk's first tile if dense, else of the panel
    const uint32_t* offsets;  // of the chunk's tiles; null: dense
    const uint8_t* nibbles;   // [tiles][32]
    const int8_t* bytes;      // [tiles][64] of the same, if expanded
    const uint8_t* scales;    // [groups][16]; a chunk begins with a group
    int32_t tiles;
    int32_t* sums;  // [rows][16], added to; of a second strip: kTokens rows behind, its bytes kPairTiles behind
};

constexpr int32_t kPairTiles = kChunkTiles / 2;

inline void begin_sums(const int32_t* correction, int32_t rows, int32_t* sums) {
    for (int32_t t = 0; t < rows; ++t)
        for (int o = 0; o < kTileN; ++o) sums[t * kTileN + o] = -correction[o];
}

// Strips g and g + 1 of a dense matrix for up to kTokens tokens.
template <class Level>
inline void int4_pair(const GemmInt4Args& args, int32_t first, int32_t rows, int32_t g, int8_t* bytes, int32_t* sums) {
    constexpr int MR = Level::kMR;
    const GemmInt8Args& a = args.common;
    const PackedInt8& w = args.w->linear;
    const size_t panel_bytes = Level::kLayout.panel_bytes(w.k), group_bytes = Level::kLayout.group_bytes();
    const char* panels = static_cast<const char*>(a.panels) + first / MR * panel_bytes;
    const int32_t count = w.indptr[g + 1] - w.indptr[g];
    for (int s = 0; s < 2; ++s)
        begin_sums(w.correction + static_cast<int64_t>(g + s) * kTileN, rows, sums + s * kTokens * kTileN);
    for (int32_t tile = 0; tile < count; tile += kPairTiles) {
        Int4Block block{};
        block.tiles = count - tile < kPairTiles ? count - tile : kPairTiles;
        block.bytes = bytes;
        for (int s = 0; s < 2; ++s)
            Level::expand(
                reinterpret_cast<const uint8_t*>(w.tiles) +
                    static_cast<int64_t>(w.indptr[g + s] + tile) * kInt4TileBytes,
                args.w->group_scale + (static_cast<int64_t>(args.w->group_ptr[g + s]) + tile / kGroupTiles) * kTileN,
                block.tiles, bytes + s * kPairTiles * kTileN * kTileK);
        for (int32_t t = 0; t < rows; t += MR) {
            const int32_t here = rows - t < MR ? rows - t : MR;
            const int32_t pieces = (here + MR / 2 - 1) / (MR / 2);
            for (int32_t i = 0; i < pieces; ++i) {
                const int32_t begin = here * i / pieces;
                block.panel = panels + t / MR * panel_bytes + tile * group_bytes + begin * kTileK;
                block.sums = sums + (t + begin) * kTileN;
                with_rows<MR / 2, Level::template Pair>(here * (i + 1) / pieces - begin, block);
            }
        }
    }
    for (int s = 0; s < 2; ++s) finish_int8(a, first, rows, g + s, sums + s * kTokens * kTileN);
}

// Level: kMR, kLayout, expand(nibbles, scales, tiles, bytes), and Nibbles<MR>, Bytes<MR> with run(Int4Block); kPairs,
// and if so Pair<MR> of two strips.
template <class Level>
inline void gemm_int4_blocks(const GemmInt4Args& args) {
    constexpr int MR = Level::kMR;
    static_assert(kTokens % MR == 0 && kChunkTiles % kGroupTiles == 0, "whole panels and groups");
    const GemmInt8Args& a = args.common;
    const PackedInt8& w = args.w->linear;
    const size_t panel_bytes = Level::kLayout.panel_bytes(w.k), group_bytes = Level::kLayout.group_bytes();
    alignas(64) int32_t sums[(Level::kPairs ? 2 : 1) * kTokens * kTileN];
    alignas(64) int8_t bytes[kChunkTiles * kTileN * kTileK];
    for (int32_t first = 0; first < a.rows; first += kTokens) {
        const int32_t rows = a.rows - first < kTokens ? a.rows - first : kTokens;
        const bool expanded = rows > MR;
        const char* panels = static_cast<const char*>(a.panels) + first / MR * panel_bytes;
        for (int32_t g = a.strip_begin; g < a.strip_end; ++g) {
            if constexpr (Level::kPairs) {
                if (!w.offsets && expanded && g + 1 < a.strip_end) {
                    int4_pair<Level>(args, first, rows, g++, bytes, sums);
                    continue;
                }
            }
            const int32_t begin = w.indptr[g], end = w.indptr[g + 1];
            const uint8_t* scales = args.w->group_scale + static_cast<int64_t>(args.w->group_ptr[g]) * kTileN;
            begin_sums(w.correction + static_cast<int64_t>(g) * kTileN, rows, sums);
            for (int32_t tile = begin; tile < end; tile += kChunkTiles) {
                const int32_t tiles = end - tile < kChunkTiles ? end - tile : kChunkTiles;
                Int4Block block;
                block.offsets = w.offsets ? w.offsets + tile : nullptr;
                block.nibbles = reinterpret_cast<const uint8_t*>(w.tiles) + static_cast<int64_t>(tile) * kInt4TileBytes;
                block.bytes = bytes;
                block.scales = scales + (tile - begin) / kGroupTiles * kTileN;
                block.tiles = tiles;
                if (expanded) Level::expand(block.nibbles, block.scales, tiles, bytes);
                block.panel = panels + (w.offsets ? 0 : (tile - begin) * group_bytes);
                block.sums = sums;
                for (int32_t t = 0; t < rows; t += MR, block.panel += panel_bytes, block.sums += MR * kTileN) {
                    const int32_t count = rows - t < MR ? rows - t : MR;
                    if (expanded) {
                        with_rows<MR, Level::template Bytes>(count, block);
                    } else {
                        with_rows<MR, Level::template Nibbles>(count, block);
                    }
                }
            }
            finish_int8(a, first, rows, g, sums);
        }
    }
}

}  // namespace
}  // namespace approxrt
