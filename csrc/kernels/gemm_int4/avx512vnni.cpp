// int4 GEMM for AVX-512 VNNI, dense and block-sparse: nibbles become the bytes m * q4, then vpdpbusd as in
// gemm_int8/avx512vnni.cpp, with 24 tokens x 16 outputs in registers. How: expand_avx512.h.
#include "kernels/common/vec_avx512.h"

#include "args.h"
#include "expand_avx512.h"
#include "blocks.h"
#include "kernels/common/products_avx512vnni.h"

namespace approxrt {
namespace {

constexpr int64_t kTileBytes = kTileN * kTileK;

constexpr PanelLayout kPanels = byte_panels(24);

template <int MR, bool kExpanded>
inline void run_block(const Int4Block& b) {
    __m512i acc[1][MR];
#pragma GCC unroll 24
    for (int r = 0; r < MR; ++r) acc[0][r] = _mm512_load_si512(b.sums + r * kTileN);
    const auto at = [&](int32_t i) {
        return b.panel + (b.offsets ? b.offsets[i] : static_cast<size_t>(i) * kPanels.group_bytes());
    };
    if constexpr (kExpanded) {
        for (int32_t i = 0; i < b.tiles; ++i) {
            const __m512i w[1] = {_mm512_load_si512(b.bytes + i * kTileBytes)};
            tile_products<MR, 1>(w, at(i), acc);
        }
    } else {
        const uint8_t* scales = b.scales;
        for (int32_t tile = 0; tile < b.tiles; tile += kGroupTiles, scales += kTileN) {
            const int32_t end = b.tiles - tile < kGroupTiles ? b.tiles : tile + kGroupTiles;
            const Scales s(scales);
            for (int32_t i = tile; i < end; ++i) {
                const __m512i w[1] = {expand_tile(b.nibbles + i * kInt4TileBytes, s)};
                tile_products<MR, 1>(w, at(i), acc);
            }
        }
    }
#pragma GCC unroll 24
    for (int r = 0; r < MR; ++r) _mm512_store_si512(b.sums + r * kTileN, acc[0][r]);
}

// Two strips of expanded tiles: a broadcast serves both.
template <int MR>
struct StripPair {
    static void run(const Int4Block& b) {
        __m512i acc[2][MR];
#pragma GCC unroll 2
        for (int s = 0; s < 2; ++s)
#pragma GCC unroll 12
            for (int r = 0; r < MR; ++r) acc[s][r] = _mm512_load_si512(b.sums + (s * kTokens + r) * kTileN);
        const int8_t* tile = b.bytes;
        const char* x = b.panel;
        for (int32_t i = 0; i < b.tiles; ++i, tile += kTileBytes, x += kPanels.group_bytes()) {
            const __m512i w[2] = {_mm512_load_si512(tile), _mm512_load_si512(tile + kPairTiles * kTileBytes)};
            tile_products<MR, 2>(w, x, acc);
        }
#pragma GCC unroll 2
        for (int s = 0; s < 2; ++s)
#pragma GCC unroll 12
            for (int r = 0; r < MR; ++r) _mm512_store_si512(b.sums + (s * kTokens + r) * kTileN, acc[s][r]);
    }
};

struct Vnni {
    static constexpr int kMR = 24;
    static constexpr bool kPairs = true;
    static constexpr PanelLayout kLayout = kPanels;

    static void expand(const uint8_t* nibbles, const uint8_t* scales, int32_t tiles, int8_t* bytes) {
        expand_tiles(nibbles, scales, tiles, bytes);
    }
    template <int MR>
    struct Nibbles {
        static void run(const Int4Block& b) { run_block<MR, false>(b); }
    };
    template <int MR>
    using Pair = StripPair<MR>;
    template <int MR>
    struct Bytes {
        static void run(const Int4Block& b) { run_block<MR, true>(b); }
    };
};

}  // namespace

void gemm_int4_avx512vnni(const GemmInt4Args& a) { gemm_int4_blocks<Vnni>(a); }

}  // namespace approxrt
