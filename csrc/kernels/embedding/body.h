// Sum of embeddings on Vec; int8 and int4 rows are widened in registers, never unpacked to memory.
#pragma once

#include <algorithm>

#include "args.h"

namespace approxrt {
namespace {

// A word's row by its storage: lanes(i) are columns i .. i + kWidth - 1, at(i) is one.
struct FloatRow {
    const float* w;
    FloatRow(const EmbeddingArgs& a, int64_t id) : w(a.word + id * a.width) {}
    Vec lanes(int32_t i) const { return load(w + i); }
    float at(int32_t i) const { return w[i]; }
};

struct Int8Row {
    const int8_t* q;
    float scale;
    Int8Row(const EmbeddingArgs& a, int64_t id) : q(a.word_q + id * a.width), scale(a.word_scale[id]) {}
    Vec lanes(int32_t i) const { return mul(load_i8(q + i), set1(scale)); }
    float at(int32_t i) const { return static_cast<float>(q[i]) * scale; }
};

// m * q4 is exact, so one rounding is all, as at the other levels. A vector never crosses a group's end.
struct Int4Row {
    const uint8_t* nibbles;
    const uint8_t* m;
    float scale;
    Int4Row(const EmbeddingArgs& a, int64_t id)
        : nibbles(a.word_q4 + id * ((a.width + 1) / 2)),
          m(a.word_group_scale + id * ((a.width + kGroupWeights - 1) / kGroupWeights)),
          scale(a.word_scale[id]) {}
    Vec lanes(int32_t i) const {
        const Vec scaled = mul(load_i4(nibbles + i / 2), set1(static_cast<float>(m[i / kGroupWeights])));
        return mul(scaled, set1(scale));
    }
    float at(int32_t i) const {
        const int q4 = (i % 2 ? nibbles[i / 2] >> 4 : nibbles[i / 2] & 15) - 8;
        return static_cast<float>(m[i / kGroupWeights] * q4) * scale;
    }
};

// scale * q is exact in both, so here, too, one rounding is all.
struct GroupInt8Row {
    const int8_t* q;
    const uint16_t* scale;
    GroupInt8Row(const EmbeddingArgs& a, int64_t id)
        : q(a.word_q + id * a.width), scale(a.word_half_scale + id * groups_of(a)) {}
    static int64_t groups_of(const EmbeddingArgs& a) { return (a.width + kGroupWeights - 1) / kGroupWeights; }
    Vec lanes(int32_t i) const { return mul(load_i8(q + i), set1(half_at(scale + i / kGroupWeights))); }
    float at(int32_t i) const { return static_cast<float>(q[i]) * half_at(scale + i / kGroupWeights); }
};

struct GroupInt4Row {
    const uint8_t* nibbles;
    const uint16_t* scale;
    const uint16_t* offset;
    GroupInt4Row(const EmbeddingArgs& a, int64_t id)
        : nibbles(a.word_q4 + id * ((a.width + 1) / 2)),
          scale(a.word_half_scale + id * GroupInt8Row::groups_of(a)),
          offset(a.word_half_offset + id * GroupInt8Row::groups_of(a)) {}
    Vec lanes(int32_t i) const {
        const Vec q = add(load_i4(nibbles + i / 2), set1(8.0f));
        const int32_t g = i / kGroupWeights;
        return add(mul(q, set1(half_at(scale + g))), set1(half_at(offset + g)));
    }
    float at(int32_t i) const {
        const int q = i % 2 ? nibbles[i / 2] >> 4 : nibbles[i / 2] & 15;
        const int32_t g = i / kGroupWeights;
        return static_cast<float>(q) * half_at(scale + g) + half_at(offset + g);
    }
};

// Fields of two bits to nibbles of their own: kWidth of them, for load_i4, which takes 8 from each.
inline Vec load_i2(const uint8_t* packed) {
    uint64_t x = 0;
    __builtin_memcpy(&x, packed, Vec::kWidth / 4);
    x = (x | x << 16) & 0x0000ffff0000ffffu;
    x = (x | x << 8) & 0x00ff00ff00ff00ffu;
    x = (x | x << 4) & 0x0f0f0f0f0f0f0f0fu;
    x = (x | x << 2) & 0x3333333333333333u;
    uint8_t spread[8];
    __builtin_memcpy(spread, &x, 8);
    return load_i4(spread);
}

// Two bits, or four for the words that are listed; m * (2 q - 3) is as exact as m * q4.
struct MixedRow {
    const uint8_t* packed;
    const uint8_t* m;
    float scale;
    bool wide;
    MixedRow(const EmbeddingArgs& a, int64_t id)
        : m(a.word_group_scale + id * GroupInt8Row::groups_of(a)), scale(a.word_scale[id]) {
        const int32_t* end = a.word_wide + a.wide;
        const int32_t* at = std::lower_bound(a.word_wide, end, static_cast<int32_t>(id));
        const int64_t before = at - a.word_wide;
        wide = at != end && *at == id;
        packed = wide ? a.word_q4 + before * ((a.width + 1) / 2) : a.word_q2 + (id - before) * ((a.width + 3) / 4);
    }
    Vec lanes(int32_t i) const {
        // 2 (q - 8) + 13 = 2 q - 3
        const Vec q = wide ? load_i4(packed + i / 2) : fma(load_i2(packed + i / 4), set1(2.0f), set1(13.0f));
        return mul(mul(q, set1(static_cast<float>(m[i / kGroupWeights]))), set1(scale));
    }
    float at(int32_t i) const {
        const int q =
            wide ? (i % 2 ? packed[i / 2] >> 4 : packed[i / 2] & 15) - 8 : 2 * (packed[i / 4] >> 2 * (i % 4) & 3) - 3;
        return static_cast<float>(m[i / kGroupWeights] * q) * scale;
    }
};

struct GroupInt6Row {
    const uint8_t* nibbles;
    const uint8_t* high;
    const uint16_t* scale;
    GroupInt6Row(const EmbeddingArgs& a, int64_t id)
        : nibbles(a.word_q4 + id * ((a.width + 1) / 2)),
          high(a.word_q2 + id * ((a.width + 3) / 4)),
          scale(a.word_half_scale + id * GroupInt8Row::groups_of(a)) {}
    Vec lanes(int32_t i) const {
        // load_i4 takes 8 from both: n - 8 + 16 (h - 8) + 104 = n + 16 h - 32.
        const Vec top = fma(load_i2(high + i / 4), set1(16.0f), set1(104.0f));
        return mul(add(load_i4(nibbles + i / 2), top), set1(half_at(scale + i / kGroupWeights)));
    }
    float at(int32_t i) const { return integer(i) * half_at(scale + i / kGroupWeights); }
    float integer(int32_t i) const {
        const int low = i % 2 ? nibbles[i / 2] >> 4 : nibbles[i / 2] & 15, top = high[i / 4] >> 2 * (i % 4) & 3;
        return static_cast<float>((low | top << 4) - 32);
    }
};

template <class Row>
inline void embedding_rows(const EmbeddingArgs& a) {
    constexpr int W = Vec::kWidth;
    const int32_t whole = a.width / W * W;
    for (int32_t t = 0; t < a.rows; ++t) {
        const Row word(a, a.ids[t]);
        const float* position = a.position + static_cast<int64_t>(a.positions[t]) * a.width;
        const float* type =
            a.token_type ? a.token_type + static_cast<int64_t>(a.types ? a.types[t] : 0) * a.width : nullptr;
        float* out = a.out + t * a.ldo;
        for (int32_t i = 0; i < whole; i += W) {
            Vec x = word.lanes(i);
            if (type) x = add(x, load(type + i));
            store(out + i, add(x, load(position + i)));
        }
        for (int32_t i = whole; i < a.width; ++i) {
            float x = word.at(i);
            if (type) x += type[i];
            out[i] = x + position[i];
        }
    }
}

inline void embedding(const EmbeddingArgs& a) {
    if (a.word) {
        embedding_rows<FloatRow>(a);
    } else if (a.word_q) {
        a.word_half_scale ? embedding_rows<GroupInt8Row>(a) : embedding_rows<Int8Row>(a);
    } else {
        a.word_half_scale ? a.word_q2 ? embedding_rows<GroupInt6Row>(a) : embedding_rows<GroupInt4Row>(a)
        : a.word_q2       ? embedding_rows<MixedRow>(a)
                          : embedding_rows<Int4Row>(a);
    }
}

}  // namespace
}  // namespace approxrt
