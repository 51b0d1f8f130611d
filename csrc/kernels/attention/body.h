// Exact softmax attention of one head on Vec, in blocks of MR queries:
//   S = Q K^T  (keys re-laid once, so that both products use the same register block)
//   P = exp(scale (S - max)), and O = (P V) / sum P;
// with a bias, S = scale Q K^T + bias and P = exp(S - max).
// A block's scores (MR x n floats) stay in L1 up to about a thousand keys.
#pragma once

#include "args.h"
#include "kernels/common/micro_f32.h"
#include "kernels/softmax/body.h"
#include "kernels/common/with_rows.h"

namespace approxrt {
namespace {

constexpr int32_t kPrefetchRows = 12;

struct AttentionBlock {
    const AttentionArgs* a;
    const float* keys;    // [n16 / 16][head_dim][16]
    const float* values;  // [head_dim / 16, rounded up][n][16]
    float* q;             // [MR][head_dim]
    float* p;             // [MR][n16]
    int64_t n16;
    int32_t query;
};

inline void copy_row(const float* x, int64_t strip, int32_t width, float* out) {
    for (int32_t i = 0; i < width; i += 16)
        __builtin_memcpy(out + i, x + i / 16 * strip, sizeof(float) * (width - i < 16 ? width - i : 16));
}

// The bias of keys j .. of a row, zeros behind the last key: what lies there is not the row's.
inline Vec load_bias(const float* row, int64_t j, int64_t n) {
    const int64_t left = n - j;
    if (left >= Vec::kWidth) return load(row + j);
    return left > 0 ? load_n(row + j, static_cast<int>(left)) : zero();
}

template <int MR, bool kBias>
struct AttentionRows {
    static void run(const AttentionBlock& block) {
        const AttentionArgs& a = *block.a;
        // Queries in one piece, as the product wants them.
        for (int r = 0; r < MR; ++r)
            copy_row(a.q + (block.query + r) * a.ldq, a.q_strip, a.head_dim, block.q + r * a.head_dim);
        Vec c[MR][kVecs];
        for (int64_t j = 0; j < block.n16; j += 16) {
            micro_f32<MR>(block.q, a.head_dim, block.keys + j * a.head_dim, a.head_dim, c);
            for (int r = 0; r < MR; ++r)
                for (int v = 0; v < kVecs; ++v) {
                    Vec s = c[r][v];
                    if constexpr (kBias)
                        s = fma(s, set1(a.scale),
                                load_bias(a.bias + (block.query + r) * a.ldb, j + v * Vec::kWidth, a.n));
                    store(block.p + r * block.n16 + j + v * Vec::kWidth, s);
                }
        }
        float inv_sum[MR];
        softmax({block.p, block.n16, MR, a.n, kBias ? 1.0f : a.scale, inv_sum});
        for (int32_t column = 0; column < a.head_dim; column += 16) {
            micro_f32<MR>(block.p, block.n16, block.values + column * static_cast<int64_t>(a.n), a.n, c);
            for (int r = 0; r < MR; ++r) {
                const Vec inv = set1(inv_sum[r]);
                float* out = a.out + (block.query + r) * a.ldo + column;
                for (int v = 0; v < kVecs; ++v) {
                    const int left = a.head_dim - column - v * Vec::kWidth;
                    if (left >= Vec::kWidth)
                        store(out + v * Vec::kWidth, mul(c[r][v], inv));
                    else if (left > 0)
                        store_n(out + v * Vec::kWidth, mul(c[r][v], inv), left);
                }
            }
        }
    }
};

template <bool kBias>
struct WithBias {
    template <int MR>
    using Rows = AttentionRows<MR, kBias>;
};

template <int MR>
inline void attention(const AttentionArgs& a) {
    const int64_t n16 = round_up(a.n, 16), d16 = round_up(a.head_dim, 16);
    float* keys = a.scratch;
    float* values = keys + d16 * n16;
    float* p = values + d16 * n16;
    float* q = p + MR * n16;
    // Keys and values are re-laid first as strips of 16, the layout of packed weights: k-major and
    // contiguous. In place they lie a multiple of 512 bytes apart, where a sequence's worth of rows shares
    // a few sets of L1 and would be fetched from L2 again for every block of queries.
    for (int32_t j = 0; j < a.n; ++j) {
        float* strip = keys + j / 16 * 16 * a.head_dim + j % 16;
        const float* key = a.k + j * a.ld;
        // Rows in one piece lie on different pages, where no hardware prefetcher follows.
        if (j + kPrefetchRows < a.n)
            for (int32_t c = 0; c < a.head_dim; c += 16) {
                __builtin_prefetch(key + kPrefetchRows * a.ld + c / 16 * a.strip);
                __builtin_prefetch(a.v + (j + kPrefetchRows) * a.ld + c / 16 * a.strip);
            }
        for (int32_t first = 0; first < a.head_dim; first += 16, key += a.strip)
            for (int32_t c = 0; c < 16 && first + c < a.head_dim; ++c) strip[(first + c) * 16] = key[c];
    }
    for (int64_t j = a.n; j < n16; ++j) {
        float* strip = keys + j / 16 * 16 * a.head_dim + j % 16;
        for (int32_t c = 0; c < a.head_dim; ++c) strip[c * 16] = 0.0f;
    }
    for (int32_t column = 0; column < a.head_dim; column += 16) {
        float* strip = values + column * static_cast<int64_t>(a.n);
        const int32_t width = a.head_dim - column < 16 ? a.head_dim - column : 16;
        for (int32_t j = 0; j < a.n; ++j) {
            const float* value = a.v + j * a.ld + column / 16 * a.strip;
            if (width == 16) {
                for (int v = 0; v < kVecs; ++v) store(strip + j * 16 + v * Vec::kWidth, load(value + v * Vec::kWidth));
            } else {
                for (int c = 0; c < 16; ++c) strip[j * 16 + c] = c < width ? value[c] : 0.0f;
            }
        }
    }
    AttentionBlock block{&a, keys, values, q, p, n16, 0};
    for (int32_t i = a.query_begin; i < a.query_end; i += MR) {
        block.query = i;
        const int32_t rows = a.query_end - i < MR ? a.query_end - i : MR;
        if (a.bias)
            with_rows<MR, WithBias<true>::Rows>(rows, block);
        else
            with_rows<MR, WithBias<false>::Rows>(rows, block);
    }
}

}  // namespace
}  // namespace approxrt
