// The first two parts of sign matching (args.h has the definition and the layout of signs):
//   1. count   for all keys of a register at once the signs that differ: planes XOR the query's sign, added up by
//              full adders on bits, so that a count is the bits of up to eight registers. A popcount of every key's
//              own word costs as many instructions for the counts alone, and then they are still to be compared.
//   2. select  the `keep` least counts: bit by bit from the highest, those with a 0 there if they are enough, else all
//              of them and the best of the others. No threshold is searched and no count is read. Each bit waits for
//              the one before, so kTogether queries are selected side by side.
#pragma once

#include "args.h"

namespace approxrt {
namespace {

constexpr int kWordsABlock = kSignBlock / 64;
constexpr int kTogether = 4;

// What all queries of a call share.
struct Selection {
    int64_t n;                // keys there are
    int32_t head_dim, signs;  // elements of a key; signs of one
    int32_t keep;
    bool causal, first;      // first: key 0 is always kept
    int32_t window;          // of causal attention
    const uint64_t* always;  // bits over keys; null: none
    const uint64_t* planes;  // [words / 8][d8][8]
    int32_t d8, bits;        // planes of a block; bits of a count
    int64_t words;           // of a set of keys

    void size() {
        d8 = static_cast<int32_t>(round_up(signs, 8));
        bits = 4;
        while (1 << bits <= d8) ++bits;
        words = sign_words(n);
    }
};

struct SignQuery {
    const Selection* s;
    uint64_t* counts;       // [words / Bits::kWords][bits][Bits::kWords]
    uint64_t *rest, *kept;  // [words]: keys to select from; those that are kept
    int32_t* signs;         // [d8]: 0 or -1; used while a query is counted
    int32_t* indices;       // kept keys, ascending
    float* scores;          // of the kept keys
    float* q;               // [head_dim]
};

inline void full_add(Bits a, Bits b, Bits c, Bits& sum, Bits& carry) {
    carry = majority(a, b, c);
    sum = odd(a, b, c);
}

// Counts of differing signs; kHigh: bits of a count above the lowest three.
template <int kHigh>
inline void count_signs(const SignQuery& b) {
    for (int64_t word = 0; word < b.s->words; word += Bits::kWords) {
        const uint64_t* plane = b.s->planes + word / kWordsABlock * kWordsABlock * b.s->d8 + word % kWordsABlock;
        Bits ones = no_bits(), twos = no_bits(), fours = no_bits(), high[kHigh];
#pragma GCC unroll 8
        for (int i = 0; i < kHigh; ++i) high[i] = no_bits();
        for (int32_t c = 0; c < b.s->d8; c += 8, plane += 8 * kWordsABlock) {
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
        uint64_t* out = b.counts + word * b.s->bits;
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
    const int64_t words = b->s->words;
    const int32_t bits = b->s->bits;
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
    const Selection& s = *b.s;
    const int64_t valid = s.causal ? own + 1 : s.n;
    const int64_t recent = !s.causal || own + 1 < s.window ? 0 : own + 1 - s.window;  // the window's first key
    int32_t rest = 0;
    for (int64_t w = 0; w < s.words; ++w) {
        uint64_t always = s.always ? s.always[w] : 0;
        if (s.causal) always |= ~below(recent, w);
        if (own / 64 == w) always |= 1ull << (own % 64);
        if (w == 0) always |= static_cast<uint64_t>(s.first);
        const uint64_t seen = below(valid, w);
        b.kept[w] = seen & always;
        b.rest[w] = seen & ~always;
        rest += __builtin_popcountll(b.rest[w]);
    }
    return rest;
}

// Splits and counts the keys of the query at position `own`, whose elements (at least its signs) are `q`, in whole
// strips; whether there is something to select. If not, `kept` is complete.
inline bool prepare(const SignQuery& b, int64_t own, const float* q) {
    const Selection& s = *b.s;
    const int64_t valid = s.causal ? own + 1 : s.n;
    const int32_t rest = split_keys(b, own);
    if (rest <= s.keep || valid <= s.keep) {
        for (int64_t w = 0; w < s.words; ++w) b.kept[w] |= b.rest[w];
        return false;
    }
    for (int32_t c = 0; c < s.signs; c += 16) sign_words16(q + c, b.signs + c);
    for (int32_t c = s.signs; c < s.d8; ++c) b.signs[c] = 0;
    switch (s.bits) {
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

// Completes `kept` of those of `rows` queries that have something to select.
inline void select_rows(const SignQuery* b, const bool* select, int rows) {
    int selected = 0;
    for (int r = 0; r < rows; ++r) selected += select[r];
    if (selected == kTogether) return select_least<kTogether>(b, b->s->keep);
    for (int r = 0; r < rows; ++r)
        if (select[r]) select_least<1>(b + r, b->s->keep);
}

// Writes the kept keys to `indices`, ascending, and returns how many they are; up to 7 values behind are overwritten.
// No branch depends on how many bits a word has, as long as they are few: mispredicted ones would cost more than
// writing eight indices.
inline int32_t list_kept(const SignQuery& b) {
    int32_t count = 0;
    for (int64_t first = 0; first < b.s->words; first += 64) {
        const int64_t end = b.s->words - first < 64 ? b.s->words - first : 64;
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

}  // namespace
}  // namespace approxrt
