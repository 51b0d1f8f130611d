// The order in which an int4 GEMM visits its register blocks, and where nibbles become bytes.
//
// Up to kTokens tokens are taken at a time; strips run inside. A strip's tiles come in chunks. With one panel of
// tokens a chunk's nibbles are expanded in registers, since nothing would use the bytes again. With more, they
// are expanded once into `bytes` (L1, on the stack: never for longer than this chunk), which all panels then
// read. Sums of the tokens wait in L1 between chunks.
//
// One order for dense and sparse, unlike int8's: strips outside panels, because that is what expanding once
// needs. Panels of 96 tokens lie in L2, and sparse tiles that pick from them cost less than expanding again for
// every few panels: taking only what fits L1 was slower with 384, 1,536 and 3,072 inputs at densities 0.1, 0.25.
#pragma once

#include "../args.h"
#include "epilogue.h"
#include "with_rows.h"

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
    int32_t* sums;  // [rows][16], added to
};

// Level: kMR, kLayout, expand(nibbles, scales, tiles, bytes), and Nibbles<MR>, Bytes<MR> with run(Int4Block).
template <class Level>
inline void gemm_int4_blocks(const GemmInt4Args& args) {
    constexpr int MR = Level::kMR;
    static_assert(kTokens % MR == 0 && kChunkTiles % kGroupTiles == 0, "whole panels and groups");
    const GemmInt8Args& a = args.common;
    const PackedInt8& w = args.w->linear;
    const size_t panel_bytes = Level::kLayout.panel_bytes(w.k), group_bytes = Level::kLayout.group_bytes();
    alignas(64) int32_t sums[kTokens * kTileN];
    alignas(64) int8_t bytes[kChunkTiles * kTileN * kTileK];
    for (int32_t first = 0; first < a.rows; first += kTokens) {
        const int32_t rows = a.rows - first < kTokens ? a.rows - first : kTokens;
        const bool expanded = rows > MR;
        const char* panels = static_cast<const char*>(a.panels) + first / MR * panel_bytes;
        for (int32_t g = a.strip_begin; g < a.strip_end; ++g) {
            const int32_t begin = w.indptr[g], end = w.indptr[g + 1];
            const uint8_t* scales = args.w->group_scale + static_cast<int64_t>(args.w->group_ptr[g]) * kTileN;
            const int32_t* correction = w.correction + static_cast<int64_t>(g) * kTileN;
            for (int32_t t = 0; t < rows; ++t)
                for (int o = 0; o < kTileN; ++o) sums[t * kTileN + o] = -correction[o];
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
