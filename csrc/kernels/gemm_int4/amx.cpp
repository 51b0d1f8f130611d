// int4 GEMM for AMX, dense and block-sparse: nibbles become the bytes m * q4 (expand_avx512.h) in a buffer, never
// for longer than a chunk of a strip, and are multiplied as those of gemm_int8/amx.cpp.
#include "kernels/common/tiles_amx.h"

#include "expand_avx512.h"

namespace approxrt {
namespace {

struct Nibbles {
    static constexpr int32_t kChunkTiles = 128;
    static_assert(kChunkTiles % kGroupTiles == 0 && kAheadBlocks * kBlockTiles % kGroupTiles == 0 &&
                      kAheadBlocks * kBlockTiles <= kChunkTiles,
                  "chunks begin with a group, and find room");
    const PackedInt4* w;
    // As many whole blocks: what lies behind a chunk's last tile is loaded, too.
    alignas(64) int8_t bytes[kMostStrips][kChunkTiles * kTileN * kTileK];

    explicit Nibbles(const PackedInt4* weights) : w(weights) {}

    const char* tiles(int slot, int32_t strip, int32_t first, int32_t count) {
        const PackedInt8& linear = w->linear;
        expand_tiles(
            reinterpret_cast<const uint8_t*>(linear.tiles) + (linear.indptr[strip] + first) * int64_t{kInt4TileBytes},
            w->group_scale + (w->group_ptr[strip] + first / kGroupTiles) * int64_t{kTileN}, count, bytes[slot]);
        return reinterpret_cast<const char*>(bytes[slot]);
    }
};

}  // namespace

void gemm_int4_amx(const GemmInt4Args& a) {
    const Tiles tiles;
    Nibbles weights(a.w);
    Blocks<Nibbles>(a.common, weights).run();
}

}  // namespace approxrt
