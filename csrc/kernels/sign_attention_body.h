// Sign-matching attention of one head (args.h has the definition and the layout of signs):
//   1. count   for all keys of a register at once the signs that differ: planes XOR the query's sign, added up by
//              full adders on bits, so that a count is the bits of up to eight registers. A popcount of every key's
//              own word costs as many instructions for the counts alone, and then they are still to be compared.
//   2. select  the `keep` least counts: bit by bit from the highest, those with a 0 there if they are enough, else all
//              of them and the best of the others. No threshold is searched and no count is read. Each bit waits for
//              the one before, so kTogether queries are selected side by side.
//   3. attend  exact scores of the kept keys, softmax, and the sum of their values.
#pragma once

#include "../args.h"
#include "softmax_body.h"

namespace approxrt {
namespace {

constexpr int kVecs = 16 / Vec::kWidth;  // vectors in a strip of 16 columns
constexpr int kWordsABlock = kSignBlock / 64;
constexpr int kTogether = 4;

struct SignQuery {
    const SignAttentionArgs* s;
    int32_t d8, bits;              // planes of a block; bits of a count
    int64_t words;                 // of a set of keys
    const uint64_t* planes;        // [words / 8][d8][8]
    uint64_t* counts;              // [words / Bits::kWords][bits][Bits::kWords]
    uint64_t *rest, *kept;         // [words]: keys to select from; those that are kept
    int32_t* signs;                // [d8]: 0 or -1
    int32_t* indices;              // kept keys, ascending
    float* scores;                 // of the kept keys
    float* q;                      // [head_dim]
    float *mean_key, *mean_value;  // [head_dim] of all keys, where the rest has a part
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

// One round of select_least: where `ones` is 0 is less. `take`: all of these are kept, and the others go on.
inline void select_step(Bits ones, Bits take, Bits& rest, Bits& kept) {
    kept = kept | (without(rest, ones) & take);
    rest = without(rest, ones ^ take);
}

inline int32_t count_bits(Bits x) {
    alignas(64) uint64_t words[Bits::kWords];
    store_bits(words, x);
    int32_t sum = 0;
    for (const uint64_t word : words) sum += __builtin_popcountll(word);
    return sum;
}

// Moves the `need` least counts of `rest` to `kept`, ties by index, for R queries; each `rest` has more than `need`.
template <int R>
inline void select_least(const SignQuery* b, int32_t need) {
    constexpr int W = Bits::kWords;
    const int64_t words = b->words;
    const int32_t bits = b->bits;
    int32_t places[R];  // that are left
    for (int r = 0; r < R; ++r) places[r] = need;
    for (int bit = bits - 1; bit >= 0; --bit) {
        Bits take[R];
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const uint64_t* counts = b[r].counts + bit * W;
            int32_t zeros = 0;
            for (int64_t word = 0; word < words; word += W)
                zeros += count_bits(without(load_bits(b[r].rest + word), load_bits(counts + word * bits)));
            // All zeros are kept if they are too few (or just enough), and the search goes on among the ones.
            const bool all = zeros <= places[r];
            places[r] -= all ? zeros : 0;
            take[r] = all_or_none(static_cast<int64_t>(all ? -1 : 0));
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const uint64_t* counts = b[r].counts + bit * W;
            for (int64_t word = 0; word < words; word += W) {
                Bits rest = load_bits(b[r].rest + word), kept = load_bits(b[r].kept + word);
                select_step(load_bits(counts + word * bits), take[r], rest, kept);
                store_bits(b[r].rest + word, rest);
                store_bits(b[r].kept + word, kept);
            }
        }
    }
    // What is left has equal counts.
    const bool causal = b->s->causal;
    for (int r = 0; r < R; ++r) {
        int32_t left = places[r];
        for (int64_t i = 0; i < words && left > 0; ++i) {
            const int64_t word = causal ? words - 1 - i : i;
            const uint64_t ties = b[r].rest[word];
            const int32_t count = __builtin_popcountll(ties), take = count < left ? count : left;
            b[r].kept[word] |= causal ? ties & ~lowest_set(ties, count - take) : lowest_set(ties, take);
            left -= take;
        }
    }
}

// Bits below `end` of a set of keys.
inline uint64_t below(int64_t end, int64_t word) {
    const int64_t left = end - 64 * word;
    return left >= 64 ? ~0ull : left > 0 ? (1ull << left) - 1 : 0;
}

// Splits the keys that query position `own` may see in those that are kept anyway and the `rest`; returns how many the
// rest are.
inline int32_t split_keys(const SignQuery& b, int64_t own) {
    const SignAttentionArgs& s = *b.s;
    const int64_t valid = s.causal ? own + 1 : s.a.n;
    const int64_t recent = !s.causal || own + 1 < s.window ? 0 : own + 1 - s.window;  // the window's first key
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
    return rest;
}

// Splits and counts the keys of query `i`; whether there is something to select. If not, `kept` is complete.
inline bool prepare(const SignQuery& b, int32_t i) {
    const SignAttentionArgs& s = *b.s;
    const int64_t own = s.offset + i, valid = s.causal ? own + 1 : s.a.n;
    const int32_t rest = split_keys(b, own);
    if (rest <= s.keep || valid <= s.keep) {
        for (int64_t w = 0; w < b.words; ++w) b.kept[w] |= b.rest[w];
        return false;
    }
    for (int32_t c = 0; c < s.a.head_dim; c += 16) sign_words16(b.q + c, b.signs + c);
    for (int32_t c = s.a.head_dim; c < b.d8; ++c) b.signs[c] = 0;
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
    return true;
}

// Writes the kept keys to `indices`, ascending, and returns how many they are; up to 7 values behind are overwritten.
// No branch depends on how many bits a word has, as long as they are few: mispredicted ones would cost more than
// writing eight indices.
inline int32_t list_kept(const SignQuery& b) {
    int32_t count = 0;
    for (int64_t first = 0; first < b.words; first += 64) {
        const int64_t end = b.words - first < 64 ? b.words - first : 64;
        uint64_t filled = 0;
        for (int64_t w = 0; w < end; ++w) filled |= static_cast<uint64_t>(b.kept[first + w] != 0) << w;
        for (; filled; filled &= filled - 1) {
            const int64_t word = first + __builtin_ctzll(filled);
            uint64_t bits = b.kept[word];
            int32_t* out = b.indices + count;
            count += __builtin_popcountll(bits);
            for (; bits; out += 8)
#pragma GCC unroll 8
                for (int i = 0; i < 8; ++i, bits &= bits - 1)
                    out[i] = static_cast<int32_t>(64 * word) + __builtin_ctzll(bits | 1ull << 63);
        }
    }
    return count;
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

// body(column, columns) for the head's columns, a vector at a time.
template <class Body>
inline void each_vec(int32_t d, const Body& body) {
    for (int32_t c = 0; c < d; c += Vec::kWidth) body(c, d - c < Vec::kWidth ? d - c : Vec::kWidth);
}

inline void add_scaled(const float* x, float factor, int32_t d, float* out) {
    each_vec(d,
             [&](int32_t c, int n) { store_n(out + c, fma(load_n(x + c, n), set1(factor), load_n(out + c, n)), n); });
}

inline void column_means(const float* x, const AttentionArgs& a, float* mean) {
    each_vec(a.head_dim, [&](int32_t c, int n) {
        const float* from = x + c / 16 * a.strip + c % 16;
        Vec even = zero(), uneven = zero();
        for (int32_t j = 0; j + 1 < a.n; j += 2) {
            even = add(even, load_n(from + j * a.ld, n));
            uneven = add(uneven, load_n(from + (j + 1) * a.ld, n));
        }
        if (a.n % 2) even = add(even, load_n(from + (a.n - 1) * a.ld, n));
        store_n(mean + c, mul(add(even, uneven), set1(1.0f / static_cast<float>(a.n))), n);
    });
}

// What `count` keys like the mean score, before it is scaled.
inline float score_rest(const SignQuery& b, int32_t count) {
    Vec sum = zero();
    each_vec(b.s->a.head_dim, [&](int32_t c, int n) { sum = fma(load_n(b.q + c, n), load_n(b.mean_key + c, n), sum); });
    return reduce_add(sum) + __builtin_logf(static_cast<float>(count)) / b.s->a.scale;
}

// Queries first .. first + rows - 1 over their kept keys. Stage by stage: a stage of one query does not wait for that
// of another, while the stages of one do.
template <int kStrips>
inline void attend_kept(const SignQuery* b, int32_t first, int rows) {
    const AttentionArgs& a = b->s->a;
    int32_t count[kTogether] = {};
    float inverse[kTogether];
    for (int r = 0; r < rows; ++r) {
        count[r] = list_kept(b[r]);
        // Keys that fill the last vector: any that exist, with weight 0.
        for (int32_t j = count[r]; j < count[r] + 16; ++j) b[r].indices[j] = 0;
    }
    for (int r = 0; r < rows; ++r) score_keys<kStrips>(b[r], count[r]);
    float rest[kTogether] = {};
    for (int r = 0; r < rows; ++r) {
        const bool some = b->s->rest && count[r] < a.n;
        if (some) b[r].scores[count[r]] = score_rest(b[r], a.n - count[r]);
        softmax({b[r].scores, 0, 1, count[r] + some, a.scale, inverse + r});
        if (some) rest[r] = b[r].scores[count[r]];
        b[r].scores[count[r]] = 0.0f;
    }
    for (int r = 0; r < rows; ++r) {
        float* out = a.out + (first + r) * a.ldo;
        sum_values<kStrips>(b[r], count[r], inverse[r], out);
        if (rest[r] > 0.0f) add_scaled(b->mean_value, rest[r] * inverse[r], a.head_dim, out);
    }
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
    SignQuery b[kTogether]{};
    b[0].s = &s;
    b[0].d8 = static_cast<int32_t>(round_up(a.head_dim, 8));
    b[0].bits = 4;
    while (1 << b[0].bits <= b[0].d8) ++b[0].bits;
    b[0].words = sign_words(a.n);
    // Parts of the scratch memory, from the most aligned on.
    auto* planes = reinterpret_cast<uint64_t*>(a.scratch);
    uint64_t* sets = planes + sign_plane_words(a.n, a.head_dim);
    const int64_t d16 = round_up(a.head_dim, 16);
    const int64_t most = round_up(a.n, 16) + 32;
    auto* indices = reinterpret_cast<int32_t*>(sets + kTogether * 10 * b[0].words);
    auto* scores = reinterpret_cast<float*>(indices + kTogether * most);
    float* q = scores + kTogether * most;
    b[0].mean_key = q + kTogether * d16;
    b[0].mean_value = b[0].mean_key + d16;
    b[0].signs = reinterpret_cast<int32_t*>(b[0].mean_value + d16);
    auto* bytes = reinterpret_cast<uint8_t*>(b[0].signs + d16);
    if (!s.planes) pack_signs(a, b[0].d8, bytes, planes);
    b[0].planes = s.planes ? s.planes : planes;
    if (s.rest) {
        column_means(a.k, a, b[0].mean_key);
        column_means(a.v, a, b[0].mean_value);
    }
    for (int r = 0; r < kTogether; ++r, sets += 10 * b[0].words) {
        b[r] = b[0];
        b[r].counts = sets;
        b[r].rest = sets + 8 * b[0].words;
        b[r].kept = b[r].rest + b[0].words;
        b[r].q = q + r * d16;
        b[r].indices = indices + r * most;
        b[r].scores = scores + r * most;
    }
    for (int32_t first = a.query_begin; first < a.query_end; first += kTogether) {
        const int rows = a.query_end - first < kTogether ? a.query_end - first : kTogether;
        bool select[kTogether];
        int selected = 0;
        for (int r = 0; r < rows; ++r) {
            for (int32_t c = 0; c < a.head_dim; c += 16)
                __builtin_memcpy(b[r].q + c, a.q + (first + r) * a.ldq + c / 16 * a.q_strip,
                                 sizeof(float) * (a.head_dim - c < 16 ? a.head_dim - c : 16));
            selected += select[r] = prepare(b[r], first + r);
        }
        if (selected == kTogether) {
            select_least<kTogether>(b, s.keep);
        } else {
            for (int r = 0; r < rows; ++r)
                if (select[r]) select_least<1>(b + r, s.keep);
        }
        if (s.kept)
            for (int r = 0; r < rows; ++r)
                __builtin_memcpy(s.kept + (first + r) * b[r].words, b[r].kept, sizeof(uint64_t) * b[r].words);
        if (a.head_dim == 32)
            attend_kept<2>(b, first, rows);
        else if (a.head_dim == 64)
            attend_kept<4>(b, first, rows);
        else
            attend_kept<0>(b, first, rows);
    }
}

}  // namespace
}  // namespace approxrt
