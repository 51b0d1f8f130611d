// int8 GEMM for AVX-512 without VNNI, dense and block-sparse, exact for full-range values: the AVX2 kernel on zmm.
//
//   acc[t, 0..15] += q_x[t, k] q_w[0..15, k] + q_x[t, k+1] q_w[0..15, k+1]      vpmaddwd, vpaddd: 32 products
//
// vpmaddubsw saturates on full-range int8 (avx2.cpp), so both operands are 16 bits wide. Weights stay int8 in
// memory; one vpmovsxbw widens 16 outputs x 2 inputs for all tokens of the block. vpmaddwd has no broadcast from
// memory, so a pair of inputs is a load of its own, which takes no vector pipe.
//
// CPUs of this level have two vector pipes for zmm, and products and sums take either: 4 instructions a token and tile
// are 2 cycles for 64 products, plus 2 vpmovsxbw a tile. The more tokens share those the better, but a panel of 16-bit
// values should stay near L1: with 12 tokens widening costs 4 % and 1,024 inputs are 24 KB. 12 accumulators, the
// weights, and products in flight: 14 to 32 of 32 registers. A sum waits one cycle for the one before, not for
// products, so 12 chains are plenty.
//
// Tile bytes run (input pair, output, input in pair): see `pairs` in dispatch.cpp.
#include "kernels/common/vec_avx512.h"

#include "args.h"
#include "blocks.h"

namespace approxrt {
namespace {

constexpr PanelLayout kLayout = word_panels(12);
constexpr int64_t kTileBytes = kTileN * kTileK;

// One token, one input pair, 16 outputs. In assembly because GCC 12 otherwise sums the pairs first and
// spills the accumulators.
inline __attribute__((always_inline)) void multiply_add(const char* x, __m512i w, __m512i& acc) {
    __m512i product;
    __asm__(
        "vpbroadcastd %[x], %[product]\n\t"
        "vpmaddwd %[w], %[product], %[product]\n\t"
        "vpaddd %[product], %[acc], %[acc]"
        : [acc] "+v"(acc), [product] "=&v"(product)
        : [w] "v"(w), [x] "m"(*reinterpret_cast<const int32_t*>(x)));
}

template <int MR>
inline __attribute__((always_inline)) void tile_product(const int8_t* tile, const char* x, __m512i (&acc)[MR]) {
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
        const __m512i w = _mm512_cvtepi8_epi16(_mm256_load_si256(reinterpret_cast<const __m256i*>(tile + pair * 32)));
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r) multiply_add(x + r * 8 + pair * 4, w, acc[r]);
    }
}

template <int MR>
struct Rows {
    static void run(const Int8Block& block) {
        const GemmInt8Args& a = *block.a;
        const PackedInt8& w = *a.w;
        const int32_t begin = w.indptr[block.strip], end = w.indptr[block.strip + 1];
        const int8_t* tile = w.tiles + begin * kTileBytes;
        __m512i acc[MR];
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r) acc[r] = _mm512_setzero_si512();
        if (w.offsets) {
            for (int32_t i = begin; i < end; ++i, tile += kTileBytes)
                tile_product<MR>(tile, block.panel + w.offsets[i], acc);
        } else {
            const char* x = block.panel;
            for (int32_t i = begin; i < end; ++i, tile += kTileBytes, x += kLayout.group_bytes())
                tile_product<MR>(tile, x, acc);
        }
        alignas(64) int32_t sums[MR * kTileN];
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r) _mm512_store_si512(sums + r * kTileN, acc[r]);
        finish_int8(a, block.row, MR, block.strip, sums);
    }
};

}  // namespace

void gemm_int8_avx512(const GemmInt8Args& a) { gemm_int8_blocks<12, Rows>(a, kLayout); }

}  // namespace approxrt
