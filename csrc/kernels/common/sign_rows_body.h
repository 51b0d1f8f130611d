// The third part of sign matching: exact attention to the kept keys. Rows of keys and of values are read one by one,
// wherever they lie; each element type of the cache can be read, float32 is the encoder's.
#pragma once

#include "cache_elements.h"
#include "sign_select_body.h"
#include "kernels/softmax/body.h"

namespace approxrt {
namespace {

// Element c of row j at base[c / 16 * strip + j * ld + c % 16]. kPadded: a row's last strip is whole, with zeros behind
// the end.
template <class Element, bool kPadded>
struct KeptRows {
    const typename Element::Type* base;
    int64_t ld, strip;

    const typename Element::Type* row(int64_t j) const { return base + j * ld; }
    Vec get(int64_t j, int32_t c, int32_t n) const {
        const auto* at = row(j) + c / 16 * strip + c % 16;
        if constexpr (kPadded)
            return Element::get(at);
        else
            return load_n(at, n);
    }
};

// Scores of `count` kept keys, in whole vectors; what is behind `count` is of no meaning. kStrips: head_dim / 16, or 0
// for any other head_dim.
template <int kStrips, class Element, bool kPadded>
inline void score_keys(const SignQuery& b, const KeptRows<Element, kPadded>& keys, int32_t count) {
    constexpr int W = Vec::kWidth;
    const int32_t d = b.s->head_dim;
    if constexpr (kStrips == 0) {
        for (int32_t j = 0; j < count; ++j) {
            Vec sum = zero();
            for (int32_t c = 0; c < d; c += W) {
                const int n = d - c < W ? d - c : W;
                sum = fma(keys.get(b.indices[j], c, n), load_n(b.q + c, n), sum);
            }
            b.scores[j] = reduce_add(sum);
        }
    } else {
        Vec q[kStrips * kVecs16];
#pragma GCC unroll 16
        for (int v = 0; v < kStrips * kVecs16; ++v) q[v] = load(b.q + v * W);
        for (int32_t j = 0; j < count; j += W) {
            Vec sums[W];
#pragma GCC unroll 16
            for (int r = 0; r < W; ++r) {
                const auto* key = keys.row(b.indices[j + r]);
                sums[r] = mul(Element::get(key), q[0]);
#pragma GCC unroll 16
                for (int v = 1; v < kStrips * kVecs16; ++v)
                    sums[r] = fma(Element::get(key + v / kVecs16 * keys.strip + v % kVecs16 * W), q[v], sums[r]);
            }
            store(b.scores + j, sums_of(sums));
        }
    }
}

// out <- unit * the sum of the kept keys' values by their weights; two sums a vector, of even and of odd places.
template <int kStrips, class Element, bool kPadded>
inline void sum_values(const SignQuery& b, const KeptRows<Element, kPadded>& values, int32_t count, float unit,
                       float* out) {
    constexpr int W = Vec::kWidth;
    const int32_t d = b.s->head_dim;
    if constexpr (kStrips == 0) {
        for (int32_t c = 0; c < d; c += W) {
            const int n = d - c < W ? d - c : W;
            Vec sum = zero();
            for (int32_t j = 0; j < count; ++j) sum = fma(values.get(b.indices[j], c, n), broadcast(b.scores + j), sum);
            store_n(out + c, mul(sum, set1(unit)), n);
        }
    } else {
        Vec even[kStrips * kVecs16], uneven[kStrips * kVecs16];
#pragma GCC unroll 16
        for (int v = 0; v < kStrips * kVecs16; ++v) even[v] = uneven[v] = zero();
        for (int32_t j = 0; j < count; j += 2) {
            const Vec p0 = broadcast(b.scores + j), p1 = broadcast(b.scores + j + 1);
            const auto *v0 = values.row(b.indices[j]), *v1 = values.row(b.indices[j + 1]);
#pragma GCC unroll 16
            for (int v = 0; v < kStrips * kVecs16; ++v) {
                even[v] = fma(Element::get(v0 + v / kVecs16 * values.strip + v % kVecs16 * W), p0, even[v]);
                uneven[v] = fma(Element::get(v1 + v / kVecs16 * values.strip + v % kVecs16 * W), p1, uneven[v]);
            }
        }
#pragma GCC unroll 16
        for (int v = 0; v < kStrips * kVecs16; ++v) store(out + v * W, mul(add(even[v], uneven[v]), set1(unit)));
    }
}

// body(column, columns) for the head's columns, a vector at a time.
template <class Body>
inline void each_vec(int32_t d, const Body& body) {
    for (int32_t c = 0; c < d; c += Vec::kWidth) body(c, d - c < Vec::kWidth ? d - c : Vec::kWidth);
}

inline void add_scaled(const float* x, float factor, int32_t d, float* out) {
    each_vec(d,
             [&](int32_t c, int n) { store_n(out + c, fma(load_n(x + c, n), set1(factor), load_n(out + c, n)), n); });
}

// What `count` keys like the mean score, before it is scaled.
inline float score_rest(const SignQuery& b, const float* mean_key, int32_t count, float scale) {
    Vec sum = zero();
    each_vec(b.s->head_dim, [&](int32_t c, int n) { sum = fma(load_n(b.q + c, n), load_n(mean_key + c, n), sum); });
    return reduce_add(sum) + __builtin_logf(static_cast<float>(count)) / scale;
}

// One query to attend with: how many keys it may see, and where the rest has a part the means that stand for it.
struct Attending {
    float* out;
    int32_t valid;
    const float *mean_key, *mean_value;  // [head_dim]; null: the rest has no part
};

// Queries over their kept keys. key_scales, value_scales: of each row, or null. Stage by stage: a stage of one query
// does not wait for that of another, while the stages of one do.
template <int kStrips, class Element, bool kPadded>
inline void attend_kept(const SignQuery* b, const Attending* a, int rows, const KeptRows<Element, kPadded>& keys,
                        const KeptRows<Element, kPadded>& values, const float* key_scales, const float* value_scales,
                        float scale) {
    int32_t count[kTogether] = {};
    float inverse[kTogether];
    for (int r = 0; r < rows; ++r) {
        count[r] = list_kept(b[r]);
        // Keys that fill the last vector: any that exist, with weight 0.
        for (int32_t j = count[r]; j < count[r] + 16; ++j) b[r].indices[j] = 0;
    }
    for (int r = 0; r < rows; ++r) {
        score_keys<kStrips>(b[r], keys, count[r]);
        if (key_scales)
            for (int32_t j = 0; j < count[r]; ++j) b[r].scores[j] *= key_scales[b[r].indices[j]];
    }
    float rest[kTogether] = {};
    for (int r = 0; r < rows; ++r) {
        float* scores = b[r].scores;
        const bool some = a[r].mean_key && count[r] < a[r].valid;
        if (some) scores[count[r]] = score_rest(b[r], a[r].mean_key, a[r].valid - count[r], scale);
        softmax({scores, 0, 1, count[r] + some, scale, inverse + r});
        if (some) rest[r] = scores[count[r]];
        scores[count[r]] = 0.0f;
        if (value_scales)
            for (int32_t j = 0; j < count[r]; ++j) scores[j] *= value_scales[b[r].indices[j]];
    }
    for (int r = 0; r < rows; ++r) {
        sum_values<kStrips>(b[r], values, count[r], inverse[r], a[r].out);
        if (rest[r] > 0.0f) add_scaled(a[r].mean_value, rest[r] * inverse[r], b[r].s->head_dim, a[r].out);
    }
}

}  // namespace
}  // namespace approxrt
