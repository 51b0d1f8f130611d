// Exact softmax attention of one head on Vec, in blocks of MR queries:
//   S = Q K^T  (keys transposed once, so that both products use the same register block)
//   P = exp(scale (S - max)), and O = (P V) / sum P.
// A block's scores (MR x n floats) stay in L1 up to about a thousand keys.
#pragma once

#include "../args.h"
#include "micro_f32.h"
#include "softmax_body.h"
#include "with_rows.h"

namespace approxrt {
namespace {

struct AttentionBlock {
    const AttentionArgs* a;
    const float* kt;  // [head_dim][n16]
    const float* v;   // [n][>= head_dim, readable in whole strips of 16]
    int64_t ldv;
    float* p;  // [MR][n16]
    int64_t n16;
    int32_t query;
};

template <int MR>
struct AttentionRows {
    static void run(const AttentionBlock& block) {
        const AttentionArgs& a = *block.a;
        Vec c[MR][kVecs];
        for (int64_t j = 0; j < block.n16; j += 16) {
            micro_f32<MR>(a.q + block.query * a.ldq, a.ldq, block.kt + j, block.n16, a.head_dim, c);
            for (int r = 0; r < MR; ++r)
                for (int v = 0; v < kVecs; ++v) store(block.p + r * block.n16 + j + v * Vec::kWidth, c[r][v]);
        }
        float inv_sum[MR];
        softmax({block.p, block.n16, MR, a.n, a.scale, inv_sum});
        for (int32_t column = 0; column < a.head_dim; column += 16) {
            micro_f32<MR>(block.p, block.n16, block.v + column, block.ldv, a.n, c);
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

template <int MR>
inline void attention(const AttentionArgs& a) {
    const int64_t n16 = round_up(a.n, 16), d16 = round_up(a.head_dim, 16);
    float* kt = a.scratch;
    float* values = kt + d16 * n16;
    float* p = values + d16 * n16;
    for (int32_t c = 0; c < a.head_dim; ++c) {
        float* row = kt + c * n16;
        for (int32_t j = 0; j < a.n; ++j) row[j] = a.k[j * a.ld + c];
        for (int64_t j = a.n; j < n16; ++j) row[j] = 0.0f;
    }
    AttentionBlock block{&a, kt, a.v, a.ld, p, n16, 0};
    if (d16 != a.head_dim) {
        for (int32_t j = 0; j < a.n; ++j) {
            for (int32_t c = 0; c < a.head_dim; ++c) values[j * d16 + c] = a.v[j * a.ld + c];
            for (int64_t c = a.head_dim; c < d16; ++c) values[j * d16 + c] = 0.0f;
        }
        block.v = values;
        block.ldv = d16;
    }
    for (int32_t i = a.query_begin; i < a.query_end; i += MR) {
        block.query = i;
        with_rows<MR, AttentionRows>(a.query_end - i < MR ? a.query_end - i : MR, block);
    }
}

}  // namespace
}  // namespace approxrt
