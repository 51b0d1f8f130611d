// Softmax attention of one head with 16-bit products (args.h has the arithmetic), in blocks of MR queries.
//
// A 16-bit multiply-add instruction does twice the products of a float one (AVX2: vpmaddwd; VNNI: vpdpwssd) and its
// operands are half as wide, at an error some hundred times below that of int8 linears around it.
//
// Layouts, all pairs of 16-bit values so that one broadcast of 32 bits meets 16 lanes:
//   queries  [queries][d16]               d16: head_dim rounded up to 16, zeros behind
//   keys     [n16 / 16][d16 / 2][16][2]   strips of 16 keys
//   values   [d16 / 16][n16 / 2][16][2]   strips of 16 columns, pairs of keys
//   weights  [MR][kWeightChunk]           of the chunk of keys at hand, zeros behind n
#pragma once

#include "args.h"
#include "layout_avx2.h"
#include "kernels/common/with_rows.h"

namespace approxrt {
namespace {

constexpr int kVecs = 16 / Vec::kWidth;  // vectors in 16 lanes
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kMasked = -1e30f;  // the score of lanes behind the last key; times a query's scale it stays finite

// 2^x for x in [-126, 0], less than 2^-125 below; relative error < 3e-6 (degree-4 minimax polynomial), far below
// the half step of 1 / 4095 to which the result is rounded.
inline Vec exp2_weight(Vec x) {
    x = max(x, set1(-126.0f));
    const Vec magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer, held in the low bits
    const Vec shifted = add(x, magic);
    const Vec f = sub(x, sub(shifted, magic));
    Vec p = set1(0.0095700994f);
    p = fma(p, f, set1(0.055917859f));
    p = fma(p, f, set1(0.24024744f));
    p = fma(p, f, set1(0.69312179f));
    p = fma(p, f, set1(0.99999928f));
    return scale_by_power(p, shifted);
}

// Up to 16 rows of floats as 16-bit integers of at most `limit`, [rows][d16], and their scales, max|x| / limit (0 for
// zeros, NaN with a NaN), times `unit`. Element (r, c) is x[c / 16 * strip + r * ld + c % 16].
inline void quantize16(const float* x, int64_t ld, int64_t strip, int rows, int32_t d, int32_t d16, float limit,
                       float unit, int16_t* out, float* scales) {
    constexpr int W = Vec::kWidth;
    const int32_t whole = d / 16 * 16;
    alignas(64) float peaks[16] = {}, inverse[16];
    for (int r = 0; r < rows; ++r) {
        const float* from = x + r * ld;
        Vec highest = zero();
        for (int32_t i = 0; i < whole; i += 16, from += strip)
#pragma GCC unroll 2
            for (int v = 0; v < 16; v += W) highest = max_magnitude(highest, load(from + v));
        for (int v = 0; v < d - whole; v += W)
            highest = max_magnitude(highest, load_n(from + v, d - whole - v < W ? d - whole - v : W));
        peaks[r] = reduce_magnitude(highest);
    }
    for (int r = 0; r < 16; r += W) {
        // A row of zeros: an inverse of zero keeps it so.
        const Vec peak = load(peaks + r), live = max(peak, set1(kQuantizeFloor));
        store(inverse + r, above(peak, set1(kQuantizeFloor), div(set1(limit), live)));
        store(scales + r, above(peak, set1(kQuantizeFloor), mul(peak, set1(unit / limit))));
    }
    for (int r = 0; r < rows; ++r) {
        const Vec factor = broadcast(inverse + r);
        const float* from = x + r * ld;
        int16_t* to = out + r * d16;
        Vec scaled[kVecs];
        for (int32_t i = 0; i < whole; i += 16, from += strip, to += 16) {
#pragma GCC unroll 2
            for (int v = 0; v < kVecs; ++v) scaled[v] = mul(load(from + v * W), factor);
            store_i16(to, scaled);
        }
        if (whole == d) continue;
        for (int v = 0; v < kVecs; ++v) {
            const int left = d - whole - v * W;
            scaled[v] = left >= W  ? mul(load(from + v * W), factor)
                        : left > 0 ? mul(load_n(from + v * W, left), factor)
                                   : zero();
        }
        store_i16(to, scaled);
    }
}

// kStrips strips of b, `strip` apart: C[s][MR][16] = sum over pairs; pair i of row r is at a + 2 * i + r * row. `row`
// is kRow unless that is 0: known at compile time, every broadcast of a step is base + constant. The accumulators are a
// local array with constant indices only: GCC 12 keeps an array that is also indexed by variables in memory, and every
// sum with it. And it is a function of its own: inlined, one of three copies kept its accumulators in memory for want
// of registers.
template <int MR, int kRow, int kStrips>
__attribute__((noinline)) void micro_int16(const int16_t* a, int64_t row, const int16_t* b, int64_t strip,
                                           int64_t pairs, int32_t* c) {
    constexpr int kCount = kStrips * kVecs;
    VecI acc[MR][kCount];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kCount; ++v) acc[r][v] = zero_i();
    if (kRow) row = kRow;
#pragma GCC unroll 2
    for (int64_t i = 0; i < pairs; ++i) {
        VecI w[kCount];
#pragma GCC unroll 2
        for (int v = 0; v < kCount; ++v) w[v] = load_i(b + v / kVecs * strip + i * 32 + v % kVecs * 2 * Vec::kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) multiply_add(a + 2 * i + r * row, w, acc[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kCount; ++v) store_i(c + v / kVecs * MR * 16 + r * 16 + v % kVecs * Vec::kWidth, acc[r][v]);
}

// Strips that go together where there are as many: two accumulators a row either way.
constexpr int kTogether = 2 / kVecs;

struct Int16Block {
    const AttentionArgs* a;
    int32_t d16;
    int64_t n16;
    const int16_t* queries;     // [query_end - query_begin][d16]
    const float* query_scales;  // the same rows; 1 for zeros, whose scores are 0 anyway, to keep masked lanes down
    const int16_t* keys;
    const int16_t* values;
    const float* key_scales;    // [n16], scale * log2 e included; 0 behind n
    const float* value_scales;  // [n16], relative to the largest, times kWeightLimit; 0 behind n
    float output_scale;         // the largest value scale / kWeightLimit
    float* scores;              // [MR][n16], in units of the query's scale; with a bias, in units of log2
    float* totals;              // [d16 / 16][MR][16]
    int32_t query;              // the first of the block, counted from query_begin
};

template <int MR, int kHeadDim, bool kBias>
struct Int16Rows {
    static constexpr int W = Vec::kWidth;

    static void run(const Int16Block& b) {
        const AttentionArgs& a = *b.a;
        float shift[MR], sums[MR];
        score(b, shift);
        for (int64_t first = 0; first < b.n16; first += kWeightChunk) {
            const int64_t end = first + kWeightChunk < b.n16 ? first + kWeightChunk : b.n16;
            alignas(64) int16_t weights[MR * kWeightChunk];
            weigh(b, first, end, shift, sums, weights);
            gather(b, first, end, weights);
        }
        for (int r = 0; r < MR; ++r) {
            const Vec unit = set1(b.output_scale / sums[r]);
            float* out = a.out + (a.query_begin + b.query + r) * a.ldo;
            const float* total = b.totals + r * 16;
            for (int32_t column = 0; column < b.d16; column += 16, total += 16 * MR)
                for (int v = 0; v < 16; v += W) {
                    const int left = a.head_dim - column - v;
                    if (left >= W)
                        store(out + column + v, mul(load(total + v), unit));
                    else if (left > 0)
                        store_n(out + column + v, mul(load(total + v), unit), left);
                }
        }
    }

    // Scores in units of the query's scale, which a bias is not: with one, in units of log2. shift = minus each row's
    // largest, in units of log2.
    static void score(const Int16Block& b, float* shift) {
        Vec highest[MR];
        for (int r = 0; r < MR; ++r) highest[r] = set1(kMasked);
        const int64_t whole = b.a->n / 16 * 16;
        int64_t j = 0;
        for (; j + 16 * kTogether <= whole; j += 16 * kTogether) score_strips<kTogether, false>(b, j, highest);
        for (; j < whole; j += 16) score_strips<1, false>(b, j, highest);
        if (whole < b.n16) score_strips<1, true>(b, whole, highest);
        for (int r = 0; r < MR; ++r) shift[r] = -reduce_max(highest[r]) * unit(b, r);
    }

    static float unit(const Int16Block& b, int r) { return kBias ? 1.0f : b.query_scales[b.query + r]; }

    // log2 e times the bias of keys j .. of row r; behind the last key nothing is read.
    static inline __attribute__((always_inline)) Vec bias(const Int16Block& b, int r, int64_t j, int64_t left) {
        const AttentionArgs& a = *b.a;
        const float* row = a.bias + (a.query_begin + b.query + r) * a.ldb + j;
        const Vec x = left >= W ? load(row) : left > 0 ? load_n(row, static_cast<int>(left)) : zero();
        return mul(x, set1(kLog2E));
    }

    template <int kStrips, bool kMask>
    static inline __attribute__((always_inline)) void score_strips(const Int16Block& b, int64_t first,
                                                                   Vec (&highest)[MR]) {
        alignas(64) int32_t c[kStrips * MR * 16];
        micro_int16<MR, kHeadDim, kStrips>(b.queries + b.query * b.d16, b.d16, b.keys + first * b.d16, 16 * b.d16,
                                           b.d16 / 2, c);
#pragma GCC unroll 2
        for (int v = 0; v < kStrips * kVecs; ++v) {
            const int64_t j = first + v * W;
            const int32_t* sums = c + v / kVecs * MR * 16 + v % kVecs * W;
            const Vec key_scale = load(b.key_scales + j);
            float* s = b.scores + j;
            const int64_t left = b.a->n - j;
#pragma GCC unroll 8
            for (int r = 0; r < MR; ++r, s += b.n16) {
                Vec x = mul(load_i32(sums + r * 16), key_scale);
                if constexpr (kBias) x = fma(x, set1(b.query_scales[b.query + r]), bias(b, r, j, kMask ? left : W));
                if (kMask && left < W) x = left > 0 ? keep_n(x, set1(kMasked), static_cast<int>(left)) : set1(kMasked);
                highest[r] = max(highest[r], x);
                store(s, x);
            }
        }
    }

    // Integer weights of keys first..end-1; `sums` continues from chunk to chunk.
    static void weigh(const Int16Block& b, int64_t first, int64_t end, const float* shift, float* sums,
                      int16_t* weights) {
        for (int r = 0; r < MR; ++r) {
            const float* s = b.scores + r * b.n16;
            int16_t* p = weights + r * kWeightChunk - first;
            const Vec unit = set1(Int16Rows::unit(b, r)), minus = set1(shift[r]);
            Vec sum = zero();
            for (int64_t j = first; j < end; j += 16) {
                Vec e[kVecs];
#pragma GCC unroll 2
                for (int v = 0; v < kVecs; ++v) {
                    // Masked lanes become 2^-126, which adds nothing to a sum of at least 1.
                    e[v] = exp2_weight(fma(load(s + j + v * W), unit, minus));
                    sum = add(sum, e[v]);
                    e[v] = mul(e[v], load(b.value_scales + j + v * W));
                }
                store_i16(p + j, e);
            }
            sums[r] = first ? sums[r] + reduce_add(sum) : reduce_add(sum);
        }
    }

    // totals += weights . values of keys first..end-1.
    static void gather(const Int16Block& b, int64_t first, int64_t end, const int16_t* weights) {
        int32_t column = 0;
        for (; column + 16 * kTogether <= b.d16; column += 16 * kTogether)
            gather_columns<kTogether>(b, first, end, weights, column);
        for (; column < b.d16; column += 16) gather_columns<1>(b, first, end, weights, column);
    }

    template <int kStrips>
    static inline __attribute__((always_inline)) void gather_columns(const Int16Block& b, int64_t first, int64_t end,
                                                                     const int16_t* weights, int32_t column) {
        alignas(64) int32_t c[kStrips * MR * 16];
        micro_int16<MR, kWeightChunk, kStrips>(weights, 0, b.values + column * b.n16 + first * 16, 16 * b.n16,
                                               (end - first) / 2, c);
        float* total = b.totals + column * MR;
        for (int i = 0; i < kStrips * MR * 16; i += W)
            store(total + i, first ? add(load(total + i), load_i32(c + i)) : load_i32(c + i));
    }
};

// Re-lays keys and values, 16 at a time; returns the largest value scale, or NaN, and then so is all output. `rows`
// holds [16][d16].
inline float pack_int16(const AttentionArgs& a, int32_t d16, int64_t n16, float limit, int16_t* keys, int16_t* values,
                        float* key_scales, float* value_scales, int16_t* rows) {
    Vec largest = zero();
    for (int64_t first = 0; first < n16; first += 16) {
        const int count = a.n - first < 16 ? static_cast<int>(a.n - first) : 16;
        __builtin_memset(rows + count * d16, 0, sizeof(int16_t) * (16 - count) * d16);
        quantize16(a.k + first * a.ld, a.ld, a.strip, count, a.head_dim, d16, limit, a.scale * kLog2E, rows,
                   key_scales + first);
        int16_t* strip = keys + first * d16;
        for (int32_t i = 0; i < d16; i += 16)
            for (int half = 0; half < 2; ++half)
                transpose_pairs(rows + half * 8 * d16 + i, d16, strip + i * 16 + half * 16);
        quantize16(a.v + first * a.ld, a.ld, a.strip, count, a.head_dim, d16, kValueLimit, 1.0f, rows,
                   value_scales + first);
        for (int v = 0; v < 16; v += Vec::kWidth) largest = max_magnitude(largest, load(value_scales + first + v));
        for (int32_t column = 0; column < d16; column += 16)
            for (int j = 0; j < 16; j += 2)
                interleave(rows + j * d16 + column, rows + (j + 1) * d16 + column,
                           values + column * n16 + (first + j) * 16);
    }
    return reduce_magnitude(largest);
}

template <int kHeadDim, bool kBias>
struct ForHeadDim {
    template <int MR>
    using Rows = Int16Rows<MR, kHeadDim, kBias>;
};

template <int MR, int kHeadDim, bool kBias>
inline void query_blocks(Int16Block& block, int32_t queries) {
    for (block.query = 0; block.query < queries; block.query += MR)
        with_rows<MR, ForHeadDim<kHeadDim, kBias>::template Rows>(
            queries - block.query < MR ? queries - block.query : MR, block);
}

template <int MR, bool kBias>
inline void query_blocks(Int16Block& block, int32_t queries) {
    if (block.d16 == 32)
        query_blocks<MR, 32, kBias>(block, queries);
    else if (block.d16 == 64)
        query_blocks<MR, 64, kBias>(block, queries);
    else
        query_blocks<MR, 0, kBias>(block, queries);
}

template <int MR>
inline void attention_int16(const AttentionArgs& a) {
    const int32_t d16 = static_cast<int32_t>(round_up(a.head_dim, 16)), queries = a.query_end - a.query_begin;
    const int64_t n16 = round_up(a.n, 16), q16 = round_up(queries, 16);
    const float limit = int16_dot_limit(d16);
    // Parts of the scratch memory, each a multiple of 64 bytes.
    auto* keys = reinterpret_cast<int16_t*>(a.scratch);
    int16_t* values = keys + d16 * n16;
    int16_t* asked = values + d16 * n16;
    int16_t* rows = asked + d16 * q16;
    auto* scores = reinterpret_cast<float*>(rows + d16 * 16);
    float* totals = scores + MR * n16;
    float* key_scales = totals + MR * d16;
    float* value_scales = key_scales + n16;
    float* query_scales = value_scales + n16;
    const float largest = pack_int16(a, d16, n16, limit, keys, values, key_scales, value_scales, rows);
    const Vec relative = set1(largest > 0.0f ? kWeightLimit / largest : 0.0f);
    for (int64_t j = 0; j < n16; j += Vec::kWidth) store(value_scales + j, mul(load(value_scales + j), relative));
    for (int32_t i = 0; i < queries; i += 16)
        quantize16(a.q + (a.query_begin + i) * a.ldq, a.ldq, a.q_strip, queries - i < 16 ? queries - i : 16, a.head_dim,
                   d16, limit, 1.0f, asked + i * d16, query_scales + i);
    for (int64_t i = 0; i < q16; i += Vec::kWidth) {
        const Vec scale = load(query_scales + i);
        store(query_scales + i, max(scale, sub(set1(1.0f), above(scale, zero(), set1(1.0f)))));
    }
    Int16Block block{&a,     d16,    n16,        asked,        query_scales,
                     keys,   values, key_scales, value_scales, largest / kWeightLimit,
                     scores, totals, 0};
    if (a.bias)
        query_blocks<MR, true>(block, queries);
    else
        query_blocks<MR, false>(block, queries);
}

}  // namespace
}  // namespace approxrt
