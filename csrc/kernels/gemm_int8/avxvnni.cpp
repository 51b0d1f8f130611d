// int8 GEMM for AVX-VNNI, dense and block-sparse: vpdpbusd on 256 bits.
//
//   acc[t, 0..7] += u[t, k..k+3] . q[0..7, k..k+3]        one vpdpbusd, 32 products
//
// VEX encoding has 16 registers and no broadcast from memory, so the block is AVX2's: 6 tokens x 16 outputs = 12
// accumulators, 2 registers of weights, 2 left for broadcasts in flight. A tile of 16 outputs x 4 inputs then costs 12
// vpdpbusd and 8 loads for 384 products: 6 cycles where two vpdpbusd are possible a cycle, and two loads of a cycle
// take 4. 12 independent chains at that rate hide a latency of 6 cycles. One token fewer would leave only 5.
//
// Accumulators are pinned by inline assembly, as in avx512vnni.cpp; {vex} because assemblers choose the EVEX
// encoding for this mnemonic, which these CPUs may not have. vpdpbusd sums four products into int32 without saturation.
//
// u = q_x + 128, hence the correction 128 * sum of weights, constant an output.
#include "kernels/common/vec_avx2.h"

#include "args.h"
#include "kernels/common/dot_avxvnni.h"
#include "blocks.h"

namespace approxrt {
namespace {

constexpr PanelLayout kLayout = byte_panels(6);
constexpr int64_t kTileBytes = kTileN * kTileK;

template <int MR>
inline __attribute__((always_inline)) void tile_product(const int8_t* tile, const char* x, __m256i (&acc)[MR][2]) {
    const auto* halves = reinterpret_cast<const __m256i*>(tile);
    const __m256i w0 = _mm256_load_si256(halves), w1 = _mm256_load_si256(halves + 1);
#pragma GCC unroll 6
    for (int r = 0; r < MR; ++r) dot_bytes(x + r * kTileK, w0, w1, acc[r]);
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
        const auto* correction =
            reinterpret_cast<const __m256i*>(w.correction + static_cast<int64_t>(block.strip) * kTileN);
        alignas(32) int32_t sums[MR * kTileN];
#pragma GCC unroll 6
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < 2; ++v)
                _mm256_store_si256(reinterpret_cast<__m256i*>(sums + r * kTileN + v * 8),
                                   _mm256_sub_epi32(acc[r][v], _mm256_load_si256(correction + v)));
        finish_int8(a, block.row, MR, block.strip, sums);
    }
};

}  // namespace

void gemm_int8_avxvnni(const GemmInt8Args& a) { gemm_int8_blocks<6, Rows>(a, kLayout); }

}  // namespace approxrt
