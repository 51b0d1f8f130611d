#include "pack_int4.h"

#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace approxrt {
namespace {

constexpr int kRowBytes = kTileK / 2;  // of an output in a canonical tile
constexpr uint8_t kZeros = 0x88;       // two weights of 0

// canonical [16][2] -> out [32] (PackedInt4), and the sum of each output's four weights. False: a nibble is 0.
bool pack_tile(const uint8_t* canonical, uint8_t* out, int32_t* sums) {
    bool sound = true;
    for (int i = 0; i < kInt4TileBytes; ++i) sound &= (canonical[i] & 15) != 0 && canonical[i] >> 4 != 0;
    for (int i = 0; i < kInt4TileBytes / 2; ++i) {
        const uint8_t low = canonical[i], high = canonical[i + kInt4TileBytes / 2];
        out[2 * i] = static_cast<uint8_t>((low & 15) | (high << 4));
        out[2 * i + 1] = static_cast<uint8_t>((low >> 4) | (high & 0xf0));
    }
    for (int o = 0; o < kTileN; ++o) {
        const uint8_t a = canonical[2 * o], b = canonical[2 * o + 1];
        sums[o] = (a & 15) + (a >> 4) + (b & 15) + (b >> 4) - 8 * kTileK;
    }
    return sound;
}

}  // namespace

Int4Weights::Int4Weights(int32_t n, int32_t k, const int32_t* indptr, bool sparse, const float* scale,
                         const float* bias) {
    const auto strips = static_cast<int32_t>(round_up(n, kTileN) / kTileN);
    const int64_t tiles = indptr[strips];
    indptr_ = AlignedBuffer(sizeof(int32_t) * (strips + 1));
    std::memcpy(indptr_.as<int32_t>(), indptr, indptr_.size());
    group_ptr_ = AlignedBuffer(sizeof(int32_t) * (strips + 1));
    auto* group_ptr = group_ptr_.as<int32_t>();
    group_ptr[0] = 0;
    for (int32_t g = 0; g < strips; ++g)
        group_ptr[g + 1] = group_ptr[g] + static_cast<int32_t>(groups_of(indptr[g + 1] - indptr[g]));
    if (sparse) offsets_ = AlignedBuffer(sizeof(uint32_t) * tiles);
    tiles_ = AlignedBuffer::weights(tiles * kInt4TileBytes);
    group_scale_ = AlignedBuffer(static_cast<int64_t>(group_ptr[strips]) * kTileN);
    scale_ = padded_floats(scale, n, strips);
    bias_ = padded_floats(bias, n, strips);
    correction_ = AlignedBuffer(sizeof(int32_t) * strips * kTileN);
    std::memset(correction_.as<int32_t>(), 0, correction_.size());
    packed_ = {.linear = {.n = n,
                          .k = k,
                          .strips = strips,
                          .indptr = indptr_.as<int32_t>(),
                          .offsets = sparse ? offsets_.as<uint32_t>() : nullptr,
                          .tiles = tiles_.as<int8_t>(),
                          .scale = scale_.as<float>(),
                          .bias = bias_.as<float>(),
                          .correction = correction_.as<int32_t>(),
                          .token_lanes = false},
               .group_ptr = group_ptr,
               .group_scale = group_scale_.as<uint8_t>()};
}

// Packs all tiles and checks their values. tile(strip, i, canonical) writes the strip's i-th tile as [16][2];
// group scales are in place already.
template <class Tile>
void Int4Weights::fill(const PanelLayout& layout, const Tile& tile) {
    const PackedInt8& w = packed_.linear;
    auto* out = tiles_.as<uint8_t>();
    auto* correction = correction_.as<int32_t>();
    bool sound = true;
    for (int32_t g = 0; g < w.strips; ++g)
        for (int32_t t = w.indptr[g]; t < w.indptr[g + 1]; ++t) {
            const int32_t i = t - w.indptr[g];
            uint8_t canonical[kInt4TileBytes];
            tile(g, i, canonical);
            int32_t sums[kTileN];
            sound &= pack_tile(canonical, out + static_cast<int64_t>(t) * kInt4TileBytes, sums);
            const uint8_t* m =
                packed_.group_scale + (packed_.group_ptr[g] + i / kGroupTiles) * static_cast<int64_t>(kTileN);
            for (int o = 0; o < kTileN; ++o) correction[g * kTileN + o] += layout.bias * m[o] * sums[o];
        }
    if (!sound) throw std::invalid_argument("int4 weights hold a nibble of 0; 1 to 15 stand for -7 to 7");
    const int64_t count = static_cast<int64_t>(packed_.group_ptr[w.strips]) * kTileN;
    for (int64_t i = 0; i < count; ++i)
        if (packed_.group_scale[i] < 1 || packed_.group_scale[i] > kMaxGroupScale)
            throw std::invalid_argument("int4 weights hold a group scale of " + std::to_string(packed_.group_scale[i]) +
                                        "; 1 to " + std::to_string(kMaxGroupScale) + " keep products in 8 bits");
}

Int4Weights Int4Weights::from_dense(const KernelTable& table, int32_t n, int32_t k, const uint8_t* q4,
                                    const uint8_t* group_scale, const float* scale, const float* bias) {
    const auto strips = static_cast<int32_t>(round_up(n, kTileN) / kTileN);
    const auto columns = static_cast<int32_t>(round_up(k, kTileK) / kTileK);
    const int64_t row_bytes = (static_cast<int64_t>(k) + 1) / 2, groups = groups_of(columns);
    std::vector<int32_t> indptr(strips + 1);
    for (int32_t g = 0; g <= strips; ++g) indptr[g] = g * columns;
    Int4Weights w(n, k, indptr.data(), false, scale, bias);
    // Outputs past n: weights of 0, so any scale does.
    auto* m = w.group_scale_.as<uint8_t>();
    std::memset(m, 1, w.group_scale_.size());
    for (int32_t o = 0; o < n; ++o)
        for (int64_t i = 0; i < groups; ++i)
            m[(o / kTileN * groups + i) * kTileN + o % kTileN] = group_scale[o * groups + i];
    w.fill(table.int4_layout, [&](int32_t g, int32_t i, uint8_t* canonical) {
        std::memset(canonical, kZeros, kInt4TileBytes);
        const int64_t at = static_cast<int64_t>(i) * kRowBytes;
        const int64_t count = row_bytes - at < kRowBytes ? row_bytes - at : kRowBytes;
        for (int o = 0; o < kTileN && g * kTileN + o < n; ++o)
            std::memcpy(canonical + o * kRowBytes, q4 + (static_cast<int64_t>(g) * kTileN + o) * row_bytes + at, count);
    });
    return w;
}

Int4Weights Int4Weights::from_bsr(const KernelTable& table, int32_t n, int32_t k, const int32_t* indptr,
                                  const uint16_t* indices, const uint8_t* tiles, const uint8_t* group_scale,
                                  const float* scale, const float* bias) {
    Int4Weights w(n, k, indptr, true, scale, bias);
    std::memcpy(w.group_scale_.as<uint8_t>(), group_scale,
                static_cast<int64_t>(w.packed_.group_ptr[w.packed_.linear.strips]) * kTileN);
    auto* offsets = w.offsets_.as<uint32_t>();
    for (int64_t t = 0; t < indptr[w.packed_.linear.strips]; ++t)
        offsets[t] = static_cast<uint32_t>(indices[t] * table.int4_layout.group_bytes());
    w.fill(table.int4_layout, [&](int32_t g, int32_t i, uint8_t* canonical) {
        std::memcpy(canonical, tiles + static_cast<int64_t>(indptr[g] + i) * kInt4TileBytes, kInt4TileBytes);
    });
    return w;
}

size_t Int4Weights::bytes() const {
    return indptr_.size() + offsets_.size() + tiles_.size() + group_ptr_.size() + group_scale_.size() + scale_.size() +
           bias_.size() + correction_.size();
}

}  // namespace approxrt
