// int8 GEMM for AVX-512 VNNI, dense and block-sparse.
//
//   acc[t, 0..15] += u[t, k..k+3] . q[0..15, k..k+3]      one vpdpbusd, 64 products
//
// A tile of 16 outputs x 4 inputs is one zmm of weights; it serves up to 24 tokens. A token's group of
// 4 inputs is broadcast by a load from base + constant (panel layout, args.h). It cannot be the memory
// operand of vpdpbusd itself: that operand is the signed one, and ours is unsigned.
// Registers: 24 accumulators, the weights, and broadcasts in flight: 26 to 32 of 32. 24 independent
// chains hide vpdpbusd's latency (4 to 5 cycles) several times over; 64 bytes of weights a 24
// instructions leave L2 idle.
//
// Accumulators are pinned by inline assembly: through _mm512_dpbusd_epi32 in a loop GCC 12 spills the
// array to the stack on every step. vpdpbusd sums four products into int32 without saturation.
//
// u = q_x + 128, hence the correction 128 * sum of weights, constant an output.
#include "vec_avx512.h"

#include "../args.h"
#include "gemm_int8_blocks.h"

namespace approxrt {
namespace {

constexpr PanelLayout kLayout = byte_panels(24);
constexpr int64_t kTileBytes = kTileN * kTileK;

template <int MR>
inline __attribute__((always_inline)) void tile_product(const int8_t* tile, const char* x, __m512i (&acc)[MR]) {
    const __m512i w = _mm512_load_si512(tile);
#pragma GCC unroll 24
    for (int r = 0; r < MR; ++r) {
        int32_t group;
        __builtin_memcpy(&group, x + r * kTileK, 4);
        const __m512i u = _mm512_set1_epi32(group);
        __asm__("vpdpbusd %[w], %[u], %[acc]" : [acc] "+v"(acc[r]) : [w] "v"(w), [u] "v"(u));
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
#pragma GCC unroll 24
        for (int r = 0; r < MR; ++r) acc[r] = _mm512_setzero_si512();
        if (w.offsets) {
            for (int32_t i = begin; i < end; ++i, tile += kTileBytes)
                tile_product<MR>(tile, block.panel + w.offsets[i], acc);
        } else {
            const char* x = block.panel;
            for (int32_t i = begin; i < end; ++i, tile += kTileBytes, x += kLayout.group_bytes())
                tile_product<MR>(tile, x, acc);
        }
        const __m512i correction = _mm512_load_si512(w.correction + static_cast<int64_t>(block.strip) * kTileN);
        alignas(64) int32_t sums[MR * kTileN];
#pragma GCC unroll 24
        for (int r = 0; r < MR; ++r) _mm512_store_si512(sums + r * kTileN, _mm512_sub_epi32(acc[r], correction));
        finish_int8(a, block.row, MR, block.strip, sums);
    }
};

}  // namespace

void gemm_int8_avx512vnni(const GemmInt8Args& a) { gemm_int8_blocks<24, Rows>(a, kLayout); }

}  // namespace approxrt
