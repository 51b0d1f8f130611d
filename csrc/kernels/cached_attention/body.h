// Causal attention over a cache on Vec, in blocks of at most MR queries that share a key-value head: tokens of a
// prompt, and the query heads of a group, so that keys and values are read (and widened to float32) once for all of
// them.
//
//   scores of 16 keys: s[r][0..15] += q[r][c] K[c][0..15], c ascending
//   softmax of each query over its own keys; zeros behind
//   o[r][0..15] += p[r][j] V[j][0..15], j ascending
//
// Every element has one chain of additions, whatever else is computed beside it; zeros that a longer query of the block
// adds behind a shorter one's keys change nothing. Few queries have few chains: then several blocks of keys, or strips
// of values, go side by side to hide the latency of an FMA.
#pragma once

#include "kernels/common/cache_elements.h"
#include "kernels/softmax/body.h"
#include "kernels/common/with_rows.h"

namespace approxrt {
namespace {

struct CachedBlock {
    const CachedAttentionArgs* a;
    float* p;     // [MR][ld]
    float* q;     // [MR][head_dim]
    int64_t ld;   // of p
    int32_t row;  // of the block's first query; queries are counted token by token, head by head
};

// Side by side with MR queries: at least eight chains while there are queries, and a broadcast of a query's element or
// of a weight serves two of them.
constexpr int beside(int mr) { return kVecs16 > 1 ? 1 : mr == 1 ? 4 : 2; }

template <class Element>
struct Cached {
    using Type = typename Element::Type;

    template <int MR, int kBlocks>
    static void scores(const CachedBlock& b, int64_t first) {
        const CacheHead& cache = b.a->cache;
        const int32_t d = cache.head_dim;
        const Type* keys = static_cast<const Type*>(cache.keys) + first * d;
        Vec s[MR][kBlocks][kVecs16];
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
            for (int n = 0; n < kBlocks; ++n)
#pragma GCC unroll 2
                for (int v = 0; v < kVecs16; ++v) s[r][n][v] = zero();
        for (int32_t c = 0; c < d; ++c) {
            Vec k[kBlocks][kVecs16];
#pragma GCC unroll 4
            for (int n = 0; n < kBlocks; ++n)
#pragma GCC unroll 2
                for (int v = 0; v < kVecs16; ++v)
                    k[n][v] = Element::get(keys + (static_cast<int64_t>(n) * d + c) * 16 + v * Vec::kWidth);
#pragma GCC unroll 12
            for (int r = 0; r < MR; ++r) {
                const Vec q = broadcast(b.q + static_cast<int64_t>(r) * d + c);
#pragma GCC unroll 4
                for (int n = 0; n < kBlocks; ++n)
#pragma GCC unroll 2
                    for (int v = 0; v < kVecs16; ++v) s[r][n][v] = fma(q, k[n][v], s[r][n][v]);
            }
        }
#pragma GCC unroll 4
        for (int n = 0; n < kBlocks; ++n)
#pragma GCC unroll 2
            for (int v = 0; v < kVecs16; ++v) {
                const int64_t at = first + n * 16 + v * Vec::kWidth;
#pragma GCC unroll 12
                for (int r = 0; r < MR; ++r) {
                    Vec score = s[r][n][v];
                    if (cache.kind == CacheKind::kInt8) score = mul(score, load(cache.key_scales + at));
                    store(b.p + r * b.ld + at, score);
                }
            }
    }

    template <int MR, int kStrips>
    static void sums(const CachedBlock& b, int32_t column, int64_t n, const float* inv_sum) {
        const CachedAttentionArgs& a = *b.a;
        const CacheHead& cache = a.cache;
        const Type* values = static_cast<const Type*>(cache.values) + column * cache.capacity;
        Vec o[MR][kStrips][kVecs16];
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
            for (int s = 0; s < kStrips; ++s)
#pragma GCC unroll 2
                for (int v = 0; v < kVecs16; ++v) o[r][s][v] = zero();
        for (int64_t j = 0; j < n; ++j) {
            Vec x[kStrips][kVecs16];
#pragma GCC unroll 4
            for (int s = 0; s < kStrips; ++s)
#pragma GCC unroll 2
                for (int v = 0; v < kVecs16; ++v)
                    x[s][v] = Element::get(values + (s * cache.capacity + j) * 16 + v * Vec::kWidth);
#pragma GCC unroll 12
            for (int r = 0; r < MR; ++r) {
                const Vec p = broadcast(b.p + r * b.ld + j);
#pragma GCC unroll 4
                for (int s = 0; s < kStrips; ++s)
#pragma GCC unroll 2
                    for (int v = 0; v < kVecs16; ++v) o[r][s][v] = fma(p, x[s][v], o[r][s][v]);
            }
        }
#pragma GCC unroll 12
        for (int r = 0; r < MR; ++r) {
            const int32_t row = b.row + r;
            float* out = a.out + row / a.heads * a.ldo + static_cast<int64_t>(row % a.heads) * cache.head_dim;
            const Vec inv = set1(inv_sum[r]);
#pragma GCC unroll 4
            for (int s = 0; s < kStrips; ++s)
#pragma GCC unroll 2
                for (int v = 0; v < kVecs16; ++v) {
                    const int32_t c = column + s * 16 + v * Vec::kWidth;
                    const int left = cache.head_dim - c;
                    if (left >= Vec::kWidth) {
                        store(out + c, mul(o[r][s][v], inv));
                    } else if (left > 0) {
                        store_n(out + c, mul(o[r][s][v], inv), left);
                    }
                }
        }
    }

    template <int MR>
    struct Rows {
        static void run(const CachedBlock& b) {
            const CachedAttentionArgs& a = *b.a;
            const CacheHead& cache = a.cache;
            const int32_t d = cache.head_dim;
            for (int r = 0; r < MR; ++r) {
                const int32_t row = b.row + r;
                __builtin_memcpy(b.q + static_cast<int64_t>(r) * d,
                                 a.q + row / a.heads * a.ldq + static_cast<int64_t>(row % a.heads) * d,
                                 sizeof(float) * d);
            }
            const int32_t most = a.position + (b.row + MR - 1) / a.heads + 1;
            int64_t j = 0;
            constexpr int kWide = beside(MR);
            for (; j + kWide * 16 <= most; j += kWide * 16) scores<MR, kWide>(b, j);
            for (; j < most; j += 16) scores<MR, 1>(b, j);
            float inv_sum[MR];
            for (int r = 0; r < MR; ++r) {
                float* p = b.p + r * b.ld;
                const int32_t n = a.position + (b.row + r) / a.heads + 1;
                softmax({p, b.ld, 1, n, a.scale, inv_sum + r});
                for (int32_t i = n; i < most; ++i) p[i] = 0.0f;
                if (cache.kind == CacheKind::kInt8) {
                    int32_t i = 0;
                    for (; i + Vec::kWidth <= n; i += Vec::kWidth)
                        store(p + i, mul(load(p + i), load(cache.value_scales + i)));
                    for (; i < n; ++i) p[i] *= cache.value_scales[i];
                }
            }
            int32_t column = 0;
            for (; column + kWide * 16 <= d; column += kWide * 16) sums<MR, kWide>(b, column, most, inv_sum);
            for (; column < d; column += 16) sums<MR, 1>(b, column, most, inv_sum);
        }
    };

    static void run(const CachedAttentionArgs& a) {
        constexpr int MR = kVecs16 > 1 ? 6 : kCachedRows;
        static_assert(MR <= kCachedRows, "scratch holds that many rows");
        CachedBlock b;
        b.a = &a;
        b.ld = cached_scores_ld(static_cast<int64_t>(a.position) + a.tokens);
        b.p = a.scratch;
        b.q = a.scratch + kCachedRows * b.ld;
        const int32_t rows = a.tokens * a.heads;
        for (b.row = 0; b.row < rows; b.row += MR) with_rows<MR, Rows>(rows - b.row < MR ? rows - b.row : MR, b);
    }
};

inline void cached_attention(const CachedAttentionArgs& a) { with_cache_kind<Cached>(a.cache.kind, a); }

}  // namespace
}  // namespace approxrt
