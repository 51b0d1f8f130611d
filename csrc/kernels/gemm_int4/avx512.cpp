// int4 GEMM for AVX-512 without VNNI, dense and block-sparse, exact: the AVX2 kernel on zmm.
//
//   group[t, o] += u[t, k] q4[o, k] + u[t, k+1] q4[o, k+1]      int16, over a group's 8 tiles
//   acc[t, o]   += m[o] * group[t, o]                           int32, once a group
//
// avx2.cpp shows that no 16-bit sum saturates. One vpmaddubsw and one vpaddw on zmm are 64 products.
//
// Registers: 12 tokens, as many as the panels of gemm_int8 have, are 12 int16 accumulators; with the weights and
// products in flight 14 to 32 of 32. A tile costs 12 vpmaddubsw + 12 vpaddw on two vector pipes, 12 cycles for 768
// products; the group's end, 12 of vpmaddwd, vpaddd, load and store, an eighth of 12 more. Expanding nibbles is 4
// instructions.
#include "kernels/common/vec_avx512.h"

#include "args.h"
#include "blocks.h"

namespace approxrt {
namespace {

constexpr int64_t kTileBytes = kTileN * kTileK;

inline __attribute__((always_inline)) __m512i from_nibbles(const uint8_t* tile) {
    // Outputs 0..7 are the low nibbles, 8..15 the high ones of the same bytes.
    const __m512i shifts = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    const __m512i twice = _mm512_broadcast_i64x4(_mm256_load_si256(reinterpret_cast<const __m256i*>(tile)));
    const __m512i n = _mm512_and_si512(_mm512_srlv_epi16(twice, shifts), _mm512_set1_epi8(15));
    return _mm512_sub_epi8(n, _mm512_set1_epi8(8));
}

// One token, 4 inputs, 16 outputs. In assembly because GCC 12 otherwise spills the accumulators.
inline __attribute__((always_inline)) void multiply_add(const char* x, __m512i w, __m512i& group) {
    __m512i product;
    __asm__(
        "vpbroadcastd %[x], %[product]\n\t"
        "vpmaddubsw %[w], %[product], %[product]\n\t"
        "vpaddw %[product], %[group], %[group]"
        : [group] "+v"(group), [product] "=&v"(product)
        : [w] "v"(w), [x] "m"(*reinterpret_cast<const int32_t*>(x)));
}

// m of 16 outputs, twice each as 16-bit values.
inline __m512i pairs_of_scales(const uint8_t* m) {
    const __m512i x = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(m)));
    return _mm512_or_si512(x, _mm512_slli_epi32(x, 16));
}

constexpr PanelLayout kPanels = byte_panels(12);

template <int MR, bool kExpanded, bool kSparse>
inline void run_groups(const Int4Block& b) {
    const uint8_t* scales = b.scales;
    const char* x = b.panel;
    for (int32_t tile = 0; tile < b.tiles; tile += kGroupTiles, scales += kTileN) {
        const int32_t end = b.tiles - tile < kGroupTiles ? b.tiles : tile + kGroupTiles;
        __m512i group[MR];
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r) group[r] = _mm512_setzero_si512();
        for (int32_t i = tile; i < end; ++i, x += kPanels.group_bytes()) {
            const __m512i w =
                kExpanded ? _mm512_load_si512(b.bytes + i * kTileBytes) : from_nibbles(b.nibbles + i * kInt4TileBytes);
            const char* at = kSparse ? b.panel + b.offsets[i] : x;
#pragma GCC unroll 12
            for (int r = 0; r < MR; ++r) multiply_add(at + r * kTileK, w, group[r]);
        }
        const __m512i m = pairs_of_scales(scales);
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r) {
            int32_t* sums = b.sums + r * kTileN;
            _mm512_store_si512(sums, _mm512_add_epi32(_mm512_load_si512(sums), _mm512_madd_epi16(group[r], m)));
        }
    }
}

template <int MR, bool kExpanded>
inline void run_block(const Int4Block& b) {
    if (b.offsets) {
        run_groups<MR, kExpanded, true>(b);
    } else {
        run_groups<MR, kExpanded, false>(b);
    }
}

struct Avx512 {
    static constexpr int kMR = 12;
    static constexpr bool kPairs = false;
    static constexpr PanelLayout kLayout = kPanels;

    static void expand(const uint8_t* nibbles, const uint8_t*, int32_t tiles, int8_t* bytes) {
        for (int32_t i = 0; i < tiles; ++i)
            _mm512_store_si512(bytes + i * kTileBytes, from_nibbles(nibbles + i * kInt4TileBytes));
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

void gemm_int4_avx512(const GemmInt4Args& a) { gemm_int4_blocks<Avx512>(a); }

}  // namespace approxrt
