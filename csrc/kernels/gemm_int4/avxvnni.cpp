// int4 GEMM for AVX-VNNI, dense and block-sparse: nibbles become the bytes m * q4 (bytes_from_nibbles: the formula of
// avx512vnni.cpp), then vpdpbusd as in gemm_int8/avxvnni.cpp, with 6 tokens x 16 outputs in registers.
//
// AVX2's way, 16-bit sums that are scaled at a group's end, costs 24 instructions a tile and an eighth of 24 more: 9
// cycles on three vector pipes. Here they are 12 vpdpbusd, 6 cycles, and the expansion: 10 instructions a tile, once
// for up to 96 tokens (blocks.h). With one panel it is done in registers beside 12 accumulators: scales and
// constants are operands from memory (L1), the tile takes the 4 registers left.
#include "kernels/common/vec_avx2.h"

#include "args.h"
#include "kernels/common/dot_avxvnni.h"
#include "blocks.h"

namespace approxrt {
namespace {

constexpr int64_t kTileBytes = kTileN * kTileK;

struct Weights {
    __m256i w0, w1;  // outputs 0..7, 8..15
};

// What turns the nibbles of a group's tiles to bytes, of outputs 0..7 and 8..15: two words an output each.
struct Scales {
    __m256i m[2], offset[2];

    explicit Scales(const uint8_t* scales) {
        for (int v = 0; v < 2; ++v) {
            const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + v * 8)));
            m[v] = _mm256_or_si256(x, _mm256_slli_epi32(x, 16));
            offset[v] = _mm256_sub_epi16(_mm256_set1_epi16(128), _mm256_mullo_epi16(m[v], _mm256_set1_epi16(0x0808)));
        }
    }
};

inline __attribute__((always_inline)) __m256i bytes_from_nibbles(__m256i n, __m256i m, __m256i offset) {
    return _mm256_xor_si256(_mm256_add_epi16(_mm256_mullo_epi16(n, m), offset), _mm256_set1_epi16(128));
}

inline __attribute__((always_inline)) Weights expand_tile(const uint8_t* nibbles, const Scales& s) {
    const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(nibbles)), mask = _mm256_set1_epi8(15);
    return {bytes_from_nibbles(_mm256_and_si256(x, mask), s.m[0], s.offset[0]),
            bytes_from_nibbles(_mm256_and_si256(_mm256_srli_epi16(x, 4), mask), s.m[1], s.offset[1])};
}

inline __attribute__((always_inline)) Weights from_bytes(const int8_t* tile) {
    const auto* halves = reinterpret_cast<const __m256i*>(tile);
    return {_mm256_load_si256(halves), _mm256_load_si256(halves + 1)};
}

template <int MR>
inline __attribute__((always_inline)) void tile_product(const Weights& w, const char* x, __m256i (&acc)[MR][2]) {
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) dot_bytes(x + r * kTileK, w.w0, w.w1, acc[r]);
}

constexpr PanelLayout kPanels = byte_panels(6);

template <int MR, bool kExpanded>
inline void run_block(const Int4Block& b) {
    __m256i acc[MR][2];
    auto* sums = reinterpret_cast<__m256i*>(b.sums);
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
        acc[r][0] = _mm256_load_si256(sums + 2 * r);
        acc[r][1] = _mm256_load_si256(sums + 2 * r + 1);
    }
    const auto at = [&](int32_t i) {
        return b.panel + (b.offsets ? b.offsets[i] : static_cast<size_t>(i) * kPanels.group_bytes());
    };
    if constexpr (kExpanded) {
        for (int32_t i = 0; i < b.tiles; ++i) tile_product<MR>(from_bytes(b.bytes + i * kTileBytes), at(i), acc);
    } else {
        const uint8_t* scales = b.scales;
        for (int32_t tile = 0; tile < b.tiles; tile += kGroupTiles, scales += kTileN) {
            const int32_t end = b.tiles - tile < kGroupTiles ? b.tiles : tile + kGroupTiles;
            const Scales s(scales);
            for (int32_t i = tile; i < end; ++i)
                tile_product<MR>(expand_tile(b.nibbles + i * kInt4TileBytes, s), at(i), acc);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) {
        _mm256_store_si256(sums + 2 * r, acc[r][0]);
        _mm256_store_si256(sums + 2 * r + 1, acc[r][1]);
    }
}

struct AvxVnni {
    static constexpr int kMR = 6;
    static constexpr bool kPairs = false;
    static constexpr PanelLayout kLayout = kPanels;

    static void expand(const uint8_t* nibbles, const uint8_t* scales, int32_t tiles, int8_t* bytes) {
        for (int32_t tile = 0; tile < tiles; tile += kGroupTiles, scales += kTileN) {
            const int32_t end = tiles - tile < kGroupTiles ? tiles : tile + kGroupTiles;
            const Scales s(scales);
            for (int32_t i = tile; i < end; ++i) {
                const Weights w = expand_tile(nibbles + i * kInt4TileBytes, s);
                auto* out = reinterpret_cast<__m256i*>(bytes + i * kTileBytes);
                _mm256_store_si256(out, w.w0);
                _mm256_store_si256(out + 1, w.w1);
            }
        }
    }
    template <int MR>
    struct Nibbles {
        static void run(const Int4Block& b) { run_block<MR, false>(b); }
    };
    template <int MR>
    struct Bytes {
        static void run(const Int4Block& b) { run_block<MR, true>(b); }
    };
};

}  // namespace

void gemm_int4_avxvnni(const GemmInt4Args& a) { gemm_int4_blocks<AvxVnni>(a); }

}  // namespace approxrt
