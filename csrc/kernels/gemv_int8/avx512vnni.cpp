// int8 products of 1 to 8 tokens for AVX-512 VNNI: weights stream from memory once, tokens wait in L1.
//
//   acc[t, 0..15] += u[t, k..k+3] . q[0..15, k..k+3]
//
// Memory gives a core some 7 bytes a cycle, a tile of 64 bytes every 9 cycles; a vpdpbusd a token and tile and the
// broadcast before it are far less. What would be slower than memory is one chain of additions (4 to 5 cycles a step
// leaves no room for misses), hence several accumulators a token while there are registers.
// A tile's order of outputs and inputs is that of gemm_int8/avx512vnni.cpp, and so are u = q + 128 and its correction.
#include "kernels/common/vec_avx512.h"

#include "decoder_args.h"
#include "kernels/common/epilogue.h"
#include "kernels/common/with_rows.h"

namespace approxrt {
namespace {

constexpr int64_t kTileBytes = kTileN * kTileK;
// As in gemm_groups/zmm.h: the hardware fetches ahead within a page of 4 KB only.
constexpr int64_t kFetchAhead = 5120;

struct Strip {
    const GemvInt8Args* a;
    int32_t strip;
};

template <int T>
struct Tokens {
    static constexpr int kChains = T == 1 ? 4 : T <= 4 ? 2 : 1;

    static inline __attribute__((always_inline)) void step(const int8_t* tile, const uint8_t* x, int64_t ld,
                                                           __m512i (&acc)[T]) {
        _mm_prefetch(tile + kFetchAhead, _MM_HINT_T0);
        const __m512i w = _mm512_load_si512(tile);
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            int32_t group;
            __builtin_memcpy(&group, x + t * ld, 4);
            const __m512i u = _mm512_set1_epi32(group);
            __asm__("vpdpbusd %[w], %[u], %[acc]" : [acc] "+v"(acc[t]) : [w] "v"(w), [u] "v"(u));
        }
    }

    static void run(const Strip& s) {
        const GemmInt8Args& a = s.a->common;
        const PackedInt8& w = *a.w;
        const int32_t begin = w.indptr[s.strip], end = w.indptr[s.strip + 1];
        const int8_t* tile = w.tiles + begin * kTileBytes;
        const uint8_t* x = s.a->x->u;
        const int64_t ld = s.a->x->ld;
        __m512i acc[kChains][T];
#pragma GCC unroll 4
        for (int c = 0; c < kChains; ++c)
#pragma GCC unroll 8
            for (int t = 0; t < T; ++t) acc[c][t] = _mm512_setzero_si512();
        int32_t i = begin;
        if (w.offsets) {
            const uint32_t rows = static_cast<uint32_t>(s.a->panel_rows);
            for (; i + kChains <= end; i += kChains)
#pragma GCC unroll 4
                for (int c = 0; c < kChains; ++c, tile += kTileBytes)
                    step(tile, x + w.offsets[i + c] / rows, ld, acc[c]);
            for (; i < end; ++i, tile += kTileBytes) step(tile, x + w.offsets[i] / rows, ld, acc[0]);
        } else {
            for (; i + kChains <= end; i += kChains)
#pragma GCC unroll 4
                for (int c = 0; c < kChains; ++c, tile += kTileBytes, x += kTileK) step(tile, x, ld, acc[c]);
            for (; i < end; ++i, tile += kTileBytes, x += kTileK) step(tile, x, ld, acc[0]);
        }
        const __m512i correction = _mm512_load_si512(w.correction + static_cast<int64_t>(s.strip) * kTileN);
        alignas(64) int32_t sums[T * kTileN];
#pragma GCC unroll 8
        for (int t = 0; t < T; ++t) {
            __m512i sum = acc[0][t];
#pragma GCC unroll 4
            for (int c = 1; c < kChains; ++c) sum = _mm512_add_epi32(sum, acc[c][t]);
            _mm512_store_si512(sums + t * kTileN, _mm512_sub_epi32(sum, correction));
        }
        finish_int8(a, 0, T, s.strip, sums);
    }
};

}  // namespace

void gemv_int8_avx512vnni(const GemvInt8Args& a) {
    Strip s{&a, 0};
    for (s.strip = a.common.strip_begin; s.strip < a.common.strip_end; ++s.strip)
        with_rows<kGemvTokens, Tokens>(a.common.rows, s);
}

}  // namespace approxrt
