// Canonical int4 weights -> the layout of gemm_int4, which is one for all levels.
#pragma once

#include <cstdint>

#include "pack.h"

namespace approxrt {

// int4 weights, owned. They stay nibbles: 32 bytes a tile and 16 of group scales for every 8 tiles.
class Int4Weights {
  public:
    // q4 [n, ceil(k / 2)]: nibbles q4 + 8, the even input in the low one; group_scale [n, ceil(k / 32)].
    // Throws std::invalid_argument on a nibble of 0 and on a group scale outside 1 .. kMaxGroupScale.
    static Int4Weights from_dense(const KernelTable& table, int32_t n, int32_t k, const uint8_t* q4,
                                  const uint8_t* group_scale, const float* scale, const float* bias);
    // tiles [indptr[strips]][16][2], indices and indptr as of int8; group_scale [groups][16], ceil(tiles / 8)
    // groups a strip. The same preconditions and exceptions.
    static Int4Weights from_bsr(const KernelTable& table, int32_t n, int32_t k, const int32_t* indptr,
                                const uint16_t* indices, const uint8_t* tiles, const uint8_t* group_scale,
                                const float* scale, const float* bias);
    const PackedInt4& packed() const { return packed_; }
    size_t bytes() const;

    static int64_t groups_of(int64_t tiles) { return round_up(tiles, kGroupTiles) / kGroupTiles; }

  private:
    Int4Weights(int32_t n, int32_t k, const int32_t* indptr, bool sparse, const float* scale, const float* bias);
    template <class Tile>
    void fill(const PanelLayout& layout, const Tile& tile);

    PackedInt4 packed_{};
    AlignedBuffer indptr_, offsets_, tiles_, group_ptr_, group_scale_, scale_, bias_, correction_;
};

}  // namespace approxrt
