// Softmax attention of one head with 16-bit products (args.h has the arithmetic), in blocks of MR queries.
//
// A 16-bit multiply-add instruction does twice the products of a float one (AVX2: vpmaddwd; VNNI: vpdpwssd) and its
// operands are half as wide, at an error some hundred times below that of int8 linears around it.
//
// Layouts, all pairs of 16-bit values so that one broadcast of 32 bits meets 16 lanes, and every broadcast of a step is
// base + constant:
//   queries  [d16 / 2][MR][2]             d16: head_dim rounded up to 16, zeros behind
//   keys     [n16 / 16][d16 / 2][16][2]   strips of 16 keys
//   values   [d16 / 16][n16 / 2][16][2]   strips of 16 columns, pairs of keys
//   weights  [MR][kWeightChunk]           of the chunk of keys at hand, zeros behind n
#pragma once

#include "../args.h"
#include "int16_layout_avx2.h"
#include "with_rows.h"

namespace approxrt {
namespace {

constexpr int kVecs = 16 / Vec::kWidth;  // vectors in 16 lanes
constexpr int32_t kPrefetchRows = 12;
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

// A row of floats as 16-bit integers of at most `limit`; returns its scale, max|x| / limit, and 0 for zeros.
inline float quantize16(const float* x, int32_t d, int32_t d16, float limit, int16_t* out) {
    constexpr int W = Vec::kWidth;
    Vec highest = zero();
    int32_t i = 0;
    for (; i + W <= d; i += W) highest = max(highest, abs(load(x + i)));
    if (i < d) highest = max(highest, abs(load_n(x + i, d - i)));
    const float peak = reduce_max(highest);
    const bool live = peak > kQuantizeFloor;
    const Vec inverse = set1(live ? limit / peak : 0.0f);
    for (i = 0; i < d16; i += 16) {
        Vec part[kVecs];
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) {
            const int left = d - i - v * W;
            const float* from = x + i + v * W;
            part[v] = mul(left >= W ? load(from) : left > 0 ? load_n(from, left) : zero(), inverse);
        }
        store_i16(out + i, part);
    }
    return live ? peak / limit : 0.0f;
}

// C[MR][16] = sum over pairs; pair i of row r is at a + i * kStep + r * kRow. The accumulators are a local array with
// constant indices only: GCC 12 keeps an array that is also indexed by variables in memory, and every sum with it.
template <int MR, int kStep, int kRow>
inline __attribute__((always_inline)) void micro_int16(const int16_t* a, const int16_t* b, int64_t pairs, int32_t* c) {
    VecI acc[MR][kVecs];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) acc[r][v] = zero_i();
#pragma GCC unroll 2
    for (int64_t i = 0; i < pairs; ++i) {
        VecI w[kVecs];
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) w[v] = load_i(b + i * 32 + v * 2 * Vec::kWidth);
#pragma GCC unroll 8
        for (int r = 0; r < MR; ++r) multiply_add(a + i * kStep + r * kRow, w, acc[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) store_i(c + r * 16 + v * Vec::kWidth, acc[r][v]);
}

struct Int16Block {
    const AttentionArgs* a;
    int32_t d16;
    int64_t n16;
    float limit;  // of queries and keys
    const int16_t* keys;
    const int16_t* values;
    const float* key_scales;    // [n16], scale * log2 e included; 0 behind n
    const float* value_scales;  // [n16], relative to the largest, times kWeightLimit; 0 behind n
    float output_scale;         // the largest value scale / kWeightLimit
    float* scores;              // [MR][n16]
    float* totals;              // [d16 / 16][MR][16]
    int16_t* queries;           // [d16 / 2][MR][2], then one row of d16
    int32_t query;
};

template <int MR>
struct Int16Rows {
    static constexpr int W = Vec::kWidth;

    static void run(const Int16Block& b) {
        const AttentionArgs& a = *b.a;
        float query_scale[MR], shift[MR], sums[MR];
        int16_t* row = b.queries + MR * b.d16;
        for (int r = 0; r < MR; ++r) {
            query_scale[r] = quantize16(a.q + (b.query + r) * a.ldq, a.head_dim, b.d16, b.limit, row);
            // Zeros: any scale will do for scores of 0, but one that keeps masked lanes down.
            if (query_scale[r] == 0.0f) query_scale[r] = 1.0f;
            for (int32_t i = 0; i < b.d16; i += 2) __builtin_memcpy(b.queries + i * MR + 2 * r, row + i, 4);
        }
        score(b, query_scale, shift);
        for (int64_t first = 0; first < b.n16; first += kWeightChunk) {
            const int64_t end = first + kWeightChunk < b.n16 ? first + kWeightChunk : b.n16;
            alignas(64) int16_t weights[MR * kWeightChunk];
            weigh(b, first, end, query_scale, shift, sums, weights);
            gather(b, first, end, weights);
        }
        for (int r = 0; r < MR; ++r) {
            const Vec unit = set1(b.output_scale / sums[r]);
            for (int32_t i = 0; i < a.head_dim; i += W) {
                float* out = a.out + (b.query + r) * a.ldo + i;
                const Vec y = mul(load(b.totals + i / 16 * 16 * MR + r * 16 + i % 16), unit);
                if (a.head_dim - i >= W)
                    store(out, y);
                else
                    store_n(out, y, a.head_dim - i);
            }
        }
    }

    // Scores in units of the query's scale; shift = minus each row's largest, in units of log2.
    static void score(const Int16Block& b, const float* query_scale, float* shift) {
        alignas(64) int32_t c[MR * 16];
        Vec highest[MR];
        for (int r = 0; r < MR; ++r) highest[r] = set1(kMasked);
        for (int64_t j = 0; j < b.n16; j += 16) {
            micro_int16<MR, 2 * MR, 2>(b.queries, b.keys + j * b.d16, b.d16 / 2, c);
            const bool last = j + 16 > b.a->n;
            for (int v = 0; v < kVecs; ++v) {
                const Vec key_scale = load(b.key_scales + j + v * W);
                const int64_t left = b.a->n - j - v * W;
#pragma GCC unroll 8
                for (int r = 0; r < MR; ++r) {
                    Vec s = mul(load_i32(c + r * 16 + v * W), key_scale);
                    if (last && left < W)
                        s = left > 0 ? keep_n(s, set1(kMasked), static_cast<int>(left)) : set1(kMasked);
                    highest[r] = max(highest[r], s);
                    store(b.scores + r * b.n16 + j + v * W, s);
                }
            }
        }
        for (int r = 0; r < MR; ++r) shift[r] = -reduce_max(highest[r]) * query_scale[r];
    }

    // Integer weights of keys first..end-1; `sums` continues from chunk to chunk.
    static void weigh(const Int16Block& b, int64_t first, int64_t end, const float* query_scale, const float* shift,
                      float* sums, int16_t* weights) {
        for (int r = 0; r < MR; ++r) {
            const float* s = b.scores + r * b.n16;
            int16_t* p = weights + r * kWeightChunk - first;
            const Vec unit = set1(query_scale[r]), minus = set1(shift[r]);
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
        alignas(64) int32_t c[MR * 16];
        for (int32_t column = 0; column < b.d16; column += 16) {
            micro_int16<MR, 2, kWeightChunk>(weights, b.values + column * b.n16 + first * 16, (end - first) / 2, c);
            float* total = b.totals + column * MR;
            for (int i = 0; i < MR * 16; i += W)
                store(total + i, first ? add(load(total + i), load_i32(c + i)) : load_i32(c + i));
        }
    }
};

// Re-lays keys and values, 16 at a time; returns the largest value scale. `rows` holds [16][d16].
inline float pack_int16(const AttentionArgs& a, int32_t d16, int64_t n16, float limit, int16_t* keys, int16_t* values,
                        float* key_scales, float* value_scales, int16_t* rows) {
    const float to_log2 = a.scale * 1.44269504088896341f;
    float largest = 0.0f;
    for (int64_t first = 0; first < n16; first += 16) {
        const int count = a.n - first < 16 ? static_cast<int>(a.n - first) : 16;
        const float* key = a.k + first * a.ld;
        for (int j = 0; j < count; ++j, key += a.ld) {
            // Rows lie on different pages, where no hardware prefetcher follows.
            if (first + j + kPrefetchRows < a.n)
                for (int32_t i = 0; i < a.head_dim; i += 16) {
                    __builtin_prefetch(key + kPrefetchRows * a.ld + i);
                    __builtin_prefetch(key + (a.v - a.k) + kPrefetchRows * a.ld + i);
                }
            key_scales[first + j] = quantize16(key, a.head_dim, d16, limit, rows + j * d16) * to_log2;
        }
        for (int j = count; j < 16; ++j) key_scales[first + j] = value_scales[first + j] = 0.0f;
        __builtin_memset(rows + count * d16, 0, sizeof(int16_t) * (16 - count) * d16);
        int16_t* strip = keys + first * d16;
        for (int32_t i = 0; i < d16; i += 16)
            for (int half = 0; half < 2; ++half)
                transpose_pairs(rows + half * 8 * d16 + i, d16, strip + i * 16 + half * 16);
        const float* value = a.v + first * a.ld;
        for (int j = 0; j < count; ++j, value += a.ld) {
            value_scales[first + j] = quantize16(value, a.head_dim, d16, kValueLimit, rows + j * d16);
            largest = value_scales[first + j] > largest ? value_scales[first + j] : largest;
        }
        for (int32_t column = 0; column < d16; column += 16)
            for (int j = 0; j < 16; j += 2)
                interleave(rows + j * d16 + column, rows + (j + 1) * d16 + column,
                           values + column * n16 + (first + j) * 16);
    }
    return largest;
}

template <int MR>
inline void attention_int16(const AttentionArgs& a) {
    const int32_t d16 = static_cast<int32_t>(round_up(a.head_dim, 16));
    const int64_t n16 = round_up(a.n, 16);
    const float limit = int16_dot_limit(d16);
    // Parts of the scratch memory, each a multiple of 64 bytes but the last.
    auto* keys = reinterpret_cast<int16_t*>(a.scratch);
    int16_t* values = keys + d16 * n16;
    auto* scores = reinterpret_cast<float*>(values + d16 * n16);
    float* totals = scores + MR * n16;
    float* key_scales = totals + MR * d16;
    float* value_scales = key_scales + n16;
    auto* rows = reinterpret_cast<int16_t*>(value_scales + n16);
    const float largest = pack_int16(a, d16, n16, limit, keys, values, key_scales, value_scales, rows);
    const float relative = largest > 0.0f ? kWeightLimit / largest : 0.0f;
    for (int64_t j = 0; j < n16; ++j) value_scales[j] *= relative;
    Int16Block block{&a,     d16,    n16,  limit, keys, values, key_scales, value_scales, largest / kWeightLimit,
                     scores, totals, rows, 0};
    for (int32_t i = a.query_begin; i < a.query_end; i += MR) {
        block.query = i;
        with_rows<MR, Int16Rows>(a.query_end - i < MR ? a.query_end - i : MR, block);
    }
}

}  // namespace
}  // namespace approxrt
