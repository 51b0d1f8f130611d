// int8 GEMM for AVX2, dense and block-sparse, exact for full-range values.
//
//   acc[t, o] += q_x[t, k] q_w[o, k] + q_x[t, k+1] q_w[o, k+1]
//
// vpmaddubsw would saturate (255 * 127 * 2 > 32767), so both operands are 16 bits wide and vpmaddwd
// adds pairs into int32 (2 * 127 * 127 fits by far). Weights stay int8 in memory and are widened on
// the way in: one vpmovsxbw serves all tokens of the block.
//
// Registers: 6 tokens x 16 outputs = 12 accumulators, 2 widened weight vectors, broadcast and
// product: all 16.
// A tile costs 24 vpmaddwd + 24 vpaddd + 4 vpmovsxbw on four vector pipes, of which two multiply:
// 13 cycles for 384 products where the multiply bound is 12.
//
// Tile bytes run (input pair, output, input in pair): see `pairs` in dispatch.cpp.
#include "kernels/common/vec_avx2.h"

#include "args.h"
#include "blocks.h"

namespace approxrt {
namespace {

constexpr PanelLayout kLayout = word_panels(6);
constexpr int64_t kTileBytes = kTileN * kTileK;

// One token, one input pair, 16 outputs. In assembly because GCC 12 otherwise sums the pairs first and
// spills the accumulators.
inline __attribute__((always_inline)) void multiply_add(const char* x, __m256i w0, __m256i w1, __m256i (&acc)[2]) {
    __m256i p0, p1;
    __asm__(
        "vpbroadcastd %[x], %[p0]\n\t"
        "vpmaddwd %[w1], %[p0], %[p1]\n\t"
        "vpmaddwd %[w0], %[p0], %[p0]\n\t"
        "vpaddd %[p1], %[a1], %[a1]\n\t"
        "vpaddd %[p0], %[a0], %[a0]"
        : [a0] "+x"(acc[0]), [a1] "+x"(acc[1]), [p0] "=&x"(p0), [p1] "=&x"(p1)
        : [w0] "x"(w0), [w1] "x"(w1), [x] "m"(*reinterpret_cast<const int32_t*>(x)));
}

template <int MR>
inline __attribute__((always_inline)) void tile_product(const int8_t* tile, const char* x, __m256i (&acc)[MR][2]) {
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
        const auto* bytes = reinterpret_cast<const __m128i*>(tile + pair * 32);
        const __m256i w0 = _mm256_cvtepi8_epi16(_mm_load_si128(bytes));
        const __m256i w1 = _mm256_cvtepi8_epi16(_mm_load_si128(bytes + 1));
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) multiply_add(x + r * 8 + pair * 4, w0, w1, acc[r]);
    }
}

template <int MR>
struct Rows {
    static void run(const Int8Block& block) {
        const GemmInt8Args& a = *block.a;
        const PackedInt8& w = *a.w;
        const int32_t begin = w.indptr[block.strip], end = w.indptr[block.strip + 1];
        const int8_t* tile = w.tiles + begin * kTileBytes;
        __m256i acc[MR][2];
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
        if (w.offsets) {
            for (int32_t i = begin; i < end; ++i, tile += kTileBytes)
                tile_product<MR>(tile, block.panel + w.offsets[i], acc);
        } else {
            const char* x = block.panel;
            for (int32_t i = begin; i < end; ++i, tile += kTileBytes, x += kLayout.group_bytes())
                tile_product<MR>(tile, x, acc);
        }
        alignas(32) int32_t sums[MR * kTileN];
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v)
                _mm256_store_si256(reinterpret_cast<__m256i*>(sums + r * kTileN + v * 8), acc[r][v]);
        finish_int8(a, block.row, MR, block.strip, sums);
    }
};

}  // namespace

void gemm_int8_avx2(const GemmInt8Args& a) { gemm_int8_blocks<6, Rows>(a, kLayout); }

}  // namespace approxrt
