// int4 GEMM for AVX-512 VNNI, dense and block-sparse: nibbles become the bytes m * q4, then vpdpbusd as in
// gemm_int8_avx512vnni.cpp, with 24 tokens x 16 outputs in registers.
//
// Scaling before the product costs 5 instructions a tile; scaling sums at a group's end would cost 24 multiplies,
// 24 additions, loads and stores a group of 8 tiles. AVX-512 has no product of bytes, but one of 16-bit words
// does two of them at once: with w = 256 q1 + q0 in a word, w * m = 256 (m q1) + m q0, whose low byte borrows
// from the high one when m q0 is negative. Adding 128 before, which |m q0| <= 126 allows, and taking it from
// the low byte alone after (an exclusive or) leaves both exact. The nibbles' own offset of 8 goes with it:
//
//   bytes = ((256 n1 + n0) * m + 128 - (256 * 8 + 8) * m) ^ 128        n = q4 + 8
#include "vec_avx512.h"

#include "../args.h"
#include "gemm_int4_blocks.h"
#include "products_avx512vnni.h"

namespace approxrt {
namespace {

constexpr int64_t kTileBytes = kTileN * kTileK;

// What turns the nibbles of a group's tiles to bytes: two words an output each.
struct Scales {
    __m512i m, offset;

    explicit Scales(const uint8_t* scales) {
        const __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
        m = _mm512_or_si512(x, _mm512_slli_epi32(x, 16));
        offset = _mm512_sub_epi16(_mm512_set1_epi16(128), _mm512_mullo_epi16(m, _mm512_set1_epi16(0x0808)));
    }
};

inline __attribute__((always_inline)) __m512i expand_tile(const uint8_t* nibbles, const Scales& s) {
    // Outputs 0..7 are the low nibbles, 8..15 the high ones of the same bytes.
    const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    const __m512i twice = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(nibbles)));
    const __m512i n = _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15));
    const __m512i scaled = _mm512_add_epi16(_mm512_mullo_epi16(n, s.m), s.offset);
    return _mm512_xor_si512(scaled, _mm512_set1_epi16(128));
}

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
        for (int32_t tile = 0; tile < tiles; tile += kGroupTiles, scales += kTileN) {
            const int32_t end = tiles - tile < kGroupTiles ? tiles : tile + kGroupTiles;
            const Scales s(scales);
            for (int32_t i = tile; i < end; ++i)
                _mm512_store_si512(bytes + i * kTileBytes, expand_tile(nibbles + i * kInt4TileBytes, s));
        }
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
