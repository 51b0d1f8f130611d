// int4 GEMM for AVX2, dense and block-sparse, exact.
//
//   group[t, o] += u[t, k] q4[o, k] + u[t, k+1] q4[o, k+1]      int16, over a group's 8 tiles
//   acc[t, o]   += m[o] * group[t, o]                           int32, once a group
//
// What int8 cannot do here, int4 can: with u <= 255 and |q4| <= 7 a pair that vpmaddubsw sums is at most 3570,
// and the 8 tiles of a group sum to at most 28560 < 32767. So the loop is vpmaddubsw + vpaddw on bytes, twice
// the products an instruction of int8's vpmaddwd on 16-bit values, and nothing saturates. vpmaddwd with (m, m)
// ends the group: it widens, scales and adds the two pair sums of an output, in int32.
//
// Registers: 6 tokens x 16 outputs are 12 int16 accumulators; with 2 weight vectors, broadcast and product that
// is all 16. The int32 sums are in L1: 12 loads and stores a group, beside 192 multiply-adds.
// A tile costs 12 vpmaddubsw + 12 vpaddw on four vector pipes, of which two multiply: 6 cycles for 384 products,
// and an eighth of 24 more for the group's end. Expanding nibbles is 5 more, which is why bytes are kept for
// the other panels (blocks.h).
#include "kernels/common/vec_avx2.h"

#include "args.h"
#include "blocks.h"

namespace approxrt {
namespace {

constexpr int64_t kTileBytes = kTileN * kTileK;

struct Weights {
    __m256i w0, w1;  // outputs 0..7, 8..15
};

inline __attribute__((always_inline)) Weights from_nibbles(const uint8_t* tile) {
    const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i*>(tile));
    const __m256i mask = _mm256_set1_epi8(15), eight = _mm256_set1_epi8(8);
    return {_mm256_sub_epi8(_mm256_and_si256(x, mask), eight),
            _mm256_sub_epi8(_mm256_and_si256(_mm256_srli_epi16(x, 4), mask), eight)};
}

inline __attribute__((always_inline)) Weights from_bytes(const int8_t* tile) {
    const auto* halves = reinterpret_cast<const __m256i*>(tile);
    return {_mm256_load_si256(halves), _mm256_load_si256(halves + 1)};
}

// One token, 4 inputs, 16 outputs. In assembly because GCC 12 otherwise spills the accumulators.
inline __attribute__((always_inline)) void multiply_add(const char* x, const Weights& w, __m256i (&group)[2]) {
    __m256i p0, p1;
    __asm__(
        "vpbroadcastd %[x], %[p0]\n\t"
        "vpmaddubsw %[w1], %[p0], %[p1]\n\t"
        "vpmaddubsw %[w0], %[p0], %[p0]\n\t"
        "vpaddw %[p1], %[a1], %[a1]\n\t"
        "vpaddw %[p0], %[a0], %[a0]"
        : [a0] "+x"(group[0]), [a1] "+x"(group[1]), [p0] "=&x"(p0), [p1] "=&x"(p1)
        : [w0] "x"(w.w0), [w1] "x"(w.w1), [x] "m"(*reinterpret_cast<const int32_t*>(x)));
}

// m of 8 outputs, twice each as 16-bit values.
inline __m256i pairs_of_scales(const uint8_t* m) {
    const __m256i x = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(m)));
    return _mm256_or_si256(x, _mm256_slli_epi32(x, 16));
}

constexpr PanelLayout kPanels = byte_panels(6);

template <int MR, bool kExpanded, bool kSparse>
inline void run_groups(const Int4Block& b) {
    const uint8_t* scales = b.scales;
    const char* x = b.panel;
    for (int32_t tile = 0; tile < b.tiles; tile += kGroupTiles, scales += kTileN) {
        const int32_t end = b.tiles - tile < kGroupTiles ? b.tiles : tile + kGroupTiles;
        __m256i group[MR][2];
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) group[r][0] = group[r][1] = _mm256_setzero_si256();
        for (int32_t i = tile; i < end; ++i, x += kPanels.group_bytes()) {
            const Weights w =
                kExpanded ? from_bytes(b.bytes + i * kTileBytes) : from_nibbles(b.nibbles + i * kInt4TileBytes);
            const char* at = kSparse ? b.panel + b.offsets[i] : x;
#pragma GCC unroll 6
            for (int r = 0; r < MR; ++r) multiply_add(at + r * kTileK, w, group[r]);
        }
        const __m256i m[2] = {pairs_of_scales(scales), pairs_of_scales(scales + 8)};
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v) {
                auto* sums = reinterpret_cast<__m256i*>(b.sums + r * kTileN) + v;
                _mm256_store_si256(sums,
                                   _mm256_add_epi32(_mm256_load_si256(sums), _mm256_madd_epi16(group[r][v], m[v])));
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

struct Avx2 {
    static constexpr int kMR = 6;
    static constexpr bool kPairs = false;
    static constexpr PanelLayout kLayout = kPanels;

    static void expand(const uint8_t* nibbles, const uint8_t*, int32_t tiles, int8_t* bytes) {
        for (int32_t i = 0; i < tiles; ++i) {
            const Weights w = from_nibbles(nibbles + i * kInt4TileBytes);
            auto* out = reinterpret_cast<__m256i*>(bytes + i * kTileBytes);
            _mm256_store_si256(out, w.w0);
            _mm256_store_si256(out + 1, w.w1);
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

void gemm_int4_avx2(const GemmInt4Args& a) { gemm_int4_blocks<Avx2>(a); }

}  // namespace approxrt
