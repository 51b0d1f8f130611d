// Sign-matching attention of one head (args.h has the definition and the layout of signs), a query at a time:
//   1. count   for all keys of a register at once the signs that differ: planes XOR the query's sign, added up by
//   carry-
//              save adders, so that a count is the bits of up to eight registers. A popcount of every key's own word
//              costs as many instructions for the counts alone, and then they are still to be compared.
//   2. select  the `keep` least counts: bit by bit from the highest, those with a 0 there if they are enough, else all
//              of them and the best of the others. No threshold is searched and no count is read.
//   3. attend  exact scores of the kept keys, softmax, and the sum of their values.
#pragma once

#include "../args.h"
#include "softmax_body.h"

namespace approxrt {
namespace {

constexpr int kVecs = 16 / Vec::kWidth;  // vectors in a strip of 16 columns
constexpr int kWordsABlock = kSignBlock / 64;
constexpr int kMostBits = 8;  // of a count: head_dim < 256

struct SignQuery {
    const SignAttentionArgs* s;
    int32_t d8, bits;        // planes of a block; bits of a count
    int64_t words;           // of a set of keys
    const uint64_t* planes;  // [words / 8][d8][8]
    uint64_t* counts;        // [words / Bits::kWords][bits][Bits::kWords]
    uint64_t *rest, *kept;   // [words]: keys to select from; those that are kept
    int32_t* signs;          // [d8]: 0 or -1
    int32_t* indices;        // kept keys, ascending
    float* scores;           // of the kept keys
    float* q;                // [head_dim]
};

inline void full_add(Bits a, Bits b, Bits c, Bits& sum, Bits& carry) {
    carry = majority(a, b, c);
    sum = odd(a, b, c);
}

// Counts of differing signs; kHigh: bits of a count above the lowest three.
template <int kHigh>
inline void count_signs(const SignQuery& b) {
    for (int64_t word = 0; word < b.words; word += Bits::kWords) {
        const uint64_t* plane = b.planes + word / kWordsABlock * kWordsABlock * b.d8 + word % kWordsABlock;
        Bits ones = no_bits(), twos = no_bits(), fours = no_bits(), high[kHigh];
#pragma GCC unroll 8
        for (int i = 0; i < kHigh; ++i) high[i] = no_bits();
        for (int32_t c = 0; c < b.d8; c += 8, plane += 8 * kWordsABlock) {
            Bits x[8], two[4], four[2], eight;
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) x[i] = load_bits(plane + i * kWordsABlock) ^ all_or_none(b.signs + c + i);
            Bits s0, s1;
            full_add(x[0], x[1], x[2], s0, two[0]);
            full_add(x[3], x[4], x[5], s1, two[1]);
            full_add(x[6], s0, s1, s0, two[2]);
            full_add(x[7], s0, ones, ones, two[3]);
            full_add(two[0], two[1], two[2], s0, four[0]);
            full_add(two[3], s0, twos, twos, four[1]);
            full_add(four[0], four[1], fours, fours, eight);
#pragma GCC unroll 8
            for (int i = 0; i < kHigh; ++i) {
                const Bits carry = high[i] & eight;
                high[i] = high[i] ^ eight;
                eight = carry;
            }
        }
        uint64_t* out = b.counts + word * b.bits;
        store_bits(out, ones);
        store_bits(out + Bits::kWords, twos);
        store_bits(out + 2 * Bits::kWords, fours);
#pragma GCC unroll 8
        for (int i = 0; i < kHigh; ++i) store_bits(out + (3 + i) * Bits::kWords, high[i]);
    }
}

inline int32_t count_words(const uint64_t* words, int64_t count) {
    int32_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += __builtin_popcountll(words[i]);
    return sum;
}

// Moves the `need` least counts of `rest` to `kept`, ties by index; `rest` has more than `need`.
inline void select_least(const SignQuery& b, int32_t need) {
    constexpr int W = Bits::kWords;
    for (int bit = b.bits - 1; bit >= 0; --bit) {
        int32_t zeros = 0;
        for (int64_t word = 0; word < b.words; word += W) {
            const Bits low = without(load_bits(b.rest + word), load_bits(b.counts + word * b.bits + bit * W));
            alignas(64) uint64_t buffer[W];
            store_bits(buffer, low);
            zeros += count_words(buffer, W);
        }
        // All zeros are kept if they are too few (or just enough), and the search goes on among the ones.
        const bool all = zeros <= need;
        const Bits take = all_or_none(static_cast<int64_t>(all ? -1 : 0));
        need -= all ? zeros : 0;
        for (int64_t word = 0; word < b.words; word += W) {
            const Bits rest = load_bits(b.rest + word), ones = load_bits(b.counts + word * b.bits + bit * W);
            store_bits(b.kept + word, load_bits(b.kept + word) | (without(rest, ones) & take));
            store_bits(b.rest + word, without(rest, ones ^ take));
        }
    }
    // What is left has equal counts.
    const bool causal = b.s->causal;
    for (int64_t i = 0; i < b.words && need > 0; ++i) {
        const int64_t word = causal ? b.words - 1 - i : i;
        uint64_t ties = b.rest[word];
        const int32_t count = __builtin_popcountll(ties);
        if (count > need) {
            if (causal) {
                for (int32_t drop = count - need; drop > 0; --drop) ties &= ties - 1;
            } else {
                uint64_t beyond = ties;
                for (int32_t take = need; take > 0; --take) beyond &= beyond - 1;
                ties ^= beyond;
            }
        }
        b.kept[word] |= ties;
        need -= count;
    }
}

// Bits below `end` of a set of keys.
inline uint64_t below(int64_t end, int64_t word) {
    const int64_t left = end - 64 * word;
    return left >= 64 ? ~0ull : left > 0 ? (1ull << left) - 1 : 0;
}

// Which keys query `i` attends to, as bits in `kept`.
inline void keep_keys(const SignQuery& b, int32_t i) {
    const SignAttentionArgs& s = *b.s;
    const int64_t own = s.offset + i, valid = s.causal ? own + 1 : s.a.n;
    const int64_t recent = !s.causal || own + 1 < s.window ? 0 : own + 1 - s.window;  // the window's first key
    if (valid <= s.keep) {
        for (int64_t w = 0; w < b.words; ++w) b.kept[w] = below(valid, w);
        return;
    }
    int32_t rest = 0;
    for (int64_t w = 0; w < b.words; ++w) {
        uint64_t always = s.always ? s.always[w] : 0;
        if (s.causal) always |= ~below(recent, w);
        if (own / 64 == w) always |= 1ull << (own % 64);
        const uint64_t seen = below(valid, w);
        b.kept[w] = seen & always;
        b.rest[w] = seen & ~always;
        rest += __builtin_popcountll(b.rest[w]);
    }
    if (rest <= s.keep) {
        for (int64_t w = 0; w < b.words; ++w) b.kept[w] |= b.rest[w];
        return;
    }
    for (int32_t c = 0; c < s.a.head_dim; ++c) {
        int32_t word;
        __builtin_memcpy(&word, b.q + c, sizeof(word));
        b.signs[c] = word >> 31;
    }
    switch (b.bits) {
        case 4:
            count_signs<1>(b);
            break;
        case 5:
            count_signs<2>(b);
            break;
        case 6:
            count_signs<3>(b);
            break;
        case 7:
            count_signs<4>(b);
            break;
        default:
            count_signs<5>(b);
    }
    select_least(b, s.keep);
}

// Scores of `count` kept keys, in whole vectors; what is behind `count` is of no meaning. kStrips: head_dim / 16, or 0
// for any other head_dim.
template <int kStrips>
inline void score_keys(const SignQuery& b, int32_t count) {
    constexpr int W = Vec::kWidth;
    const AttentionArgs& a = b.s->a;
    if constexpr (kStrips == 0) {
        for (int32_t j = 0; j < count; ++j) {
            const float* key = a.k + b.indices[j] * a.ld;
            Vec sum = zero();
            for (int32_t c = 0; c < a.head_dim; c += W) {
                const int n = a.head_dim - c < W ? a.head_dim - c : W;
                sum = fma(load_n(key + c / 16 * a.strip + c % 16, n), load_n(b.q + c, n), sum);
            }
            b.scores[j] = reduce_add(sum);
        }
    } else {
        Vec q[kStrips * kVecs];
#pragma GCC unroll 16
        for (int v = 0; v < kStrips * kVecs; ++v) q[v] = load(b.q + v * W);
        for (int32_t j = 0; j < count; j += W) {
            Vec sums[W];
#pragma GCC unroll 16
            for (int r = 0; r < W; ++r) {
                const float* key = a.k + b.indices[j + r] * a.ld;
                sums[r] = mul(load(key), q[0]);
#pragma GCC unroll 16
                for (int v = 1; v < kStrips * kVecs; ++v)
                    sums[r] = fma(load(key + v / kVecs * a.strip + v % kVecs * W), q[v], sums[r]);
            }
            store(b.scores + j, sums_of(sums));
        }
    }
}

// out <- unit * the sum of the kept keys' values by their weights; two sums a vector, of even and of odd places.
template <int kStrips>
inline void sum_values(const SignQuery& b, int32_t count, float unit, float* out) {
    constexpr int W = Vec::kWidth;
    const AttentionArgs& a = b.s->a;
    if constexpr (kStrips == 0) {
        for (int32_t c = 0; c < a.head_dim; c += W) {
            const int n = a.head_dim - c < W ? a.head_dim - c : W;
            Vec sum = zero();
            for (int32_t j = 0; j < count; ++j) {
                const float* value = a.v + b.indices[j] * a.ld + c / 16 * a.strip + c % 16;
                sum = fma(load_n(value, n), broadcast(b.scores + j), sum);
            }
            store_n(out + c, mul(sum, set1(unit)), n);
        }
    } else {
        Vec even[kStrips * kVecs], uneven[kStrips * kVecs];
#pragma GCC unroll 16
        for (int v = 0; v < kStrips * kVecs; ++v) even[v] = uneven[v] = zero();
        for (int32_t j = 0; j < count; j += 2) {
            const Vec p0 = broadcast(b.scores + j), p1 = broadcast(b.scores + j + 1);
            const float *v0 = a.v + b.indices[j] * a.ld, *v1 = a.v + b.indices[j + 1] * a.ld;
#pragma GCC unroll 16
            for (int v = 0; v < kStrips * kVecs; ++v) {
                even[v] = fma(load(v0 + v / kVecs * a.strip + v % kVecs * W), p0, even[v]);
                uneven[v] = fma(load(v1 + v / kVecs * a.strip + v % kVecs * W), p1, uneven[v]);
            }
        }
#pragma GCC unroll 16
        for (int v = 0; v < kStrips * kVecs; ++v) store(out + v * W, mul(add(even[v], uneven[v]), set1(unit)));
    }
}

template <int kStrips>
inline void attend_kept(const SignQuery& b, int32_t i) {
    const AttentionArgs& a = b.s->a;
    int32_t count = 0;
    for (int64_t w = 0; w < b.words; ++w)
        if (b.kept[w]) count += indices_of(b.kept[w], static_cast<int32_t>(64 * w), b.indices + count);
    // Keys that fill the last vector: any that exist, with weight 0.
    for (int32_t j = count; j < count + 16; ++j) b.indices[j] = 0;
    score_keys<kStrips>(b, count);
    float inverse;
    softmax({b.scores, 0, 1, count, a.scale, &inverse});
    b.scores[count] = 0.0f;
    sum_values<kStrips>(b, count, inverse, a.out + i * a.ldo);
}

// Signs of all keys as planes; `bytes` holds [d8 / 8][64].
inline void pack_signs(const AttentionArgs& a, int32_t d8, uint8_t* bytes, uint64_t* planes) {
    const int64_t words = sign_words(a.n);
    for (int64_t word = 0; word < words; ++word) {
        uint64_t* out = planes + word / kWordsABlock * kWordsABlock * d8 + word % kWordsABlock;
        const int64_t first = 64 * word;
        __builtin_memset(bytes, 0, 8 * round_up(d8, 16));
        for (int64_t j = first; j < first + 64 && j < a.n; ++j) {
            const float* key = a.k + j * a.ld;
            for (int32_t c = 0; c < a.head_dim; c += 16, key += a.strip) {
                uint8_t* to = bytes + c / 8 * 64 + (j - first);
                sign_bytes(key, a.head_dim - c < 16 ? a.head_dim - c : 16, to, to + 64);
            }
        }
        for (int32_t c = 0; c < d8; c += 8) spread_bytes(bytes + c / 8 * 64, out + c * kWordsABlock);
    }
}

inline void sign_attention(const SignAttentionArgs& s) {
    const AttentionArgs& a = s.a;
    SignQuery b{};
    b.s = &s;
    b.d8 = static_cast<int32_t>(round_up(a.head_dim, 8));
    b.bits = 4;
    while (1 << b.bits <= b.d8) ++b.bits;
    b.words = sign_words(a.n);
    // Parts of the scratch memory, from the most aligned on.
    auto* planes = reinterpret_cast<uint64_t*>(a.scratch);
    b.counts = planes + sign_plane_words(a.n, a.head_dim);
    b.rest = b.counts + kMostBits * b.words;
    b.kept = b.rest + b.words;
    b.indices = reinterpret_cast<int32_t*>(b.kept + b.words);
    b.scores = reinterpret_cast<float*>(b.indices + round_up(a.n, 16) + 32);
    b.q = b.scores + round_up(a.n, 16) + 32;
    b.signs = reinterpret_cast<int32_t*>(b.q + round_up(a.head_dim, 16));
    auto* bytes = reinterpret_cast<uint8_t*>(b.signs + round_up(a.head_dim, 16));
    if (!s.planes) pack_signs(a, b.d8, bytes, planes);
    b.planes = s.planes ? s.planes : planes;
    for (int32_t c = a.head_dim; c < b.d8; ++c) b.signs[c] = 0;
    for (int32_t i = a.query_begin; i < a.query_end; ++i) {
        for (int32_t c = 0; c < a.head_dim; c += 16)
            __builtin_memcpy(b.q + c, a.q + i * a.ldq + c / 16 * a.q_strip,
                             sizeof(float) * (a.head_dim - c < 16 ? a.head_dim - c : 16));
        keep_keys(b, i);
        if (s.kept) __builtin_memcpy(s.kept + i * b.words, b.kept, sizeof(uint64_t) * b.words);
        if (a.head_dim == 32)
            attend_kept<2>(b, i);
        else if (a.head_dim == 64)
            attend_kept<4>(b, i);
        else
            attend_kept<0>(b, i);
    }
}

}  // namespace
}  // namespace approxrt
