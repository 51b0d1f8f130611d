// Keys and values into the cache on Vec: a row becomes elements, which a key then scatters over its block's rows.
#pragma once

#include "kernels/common/cache_elements.h"

namespace approxrt {
namespace {

// Elements c .. c + 15 of a row, zeros behind its end.
inline void load_16(const float* x, int32_t left, Vec (&out)[kVecs16]) {
    for (int v = 0; v < kVecs16; ++v) {
        const int n = left - v * Vec::kWidth;
        out[v] = n >= Vec::kWidth ? load(x + v * Vec::kWidth) : n > 0 ? load_n(x + v * Vec::kWidth, n) : zero();
    }
}

template <class Element>
struct CacheWrite {
    using Type = typename Element::Type;

    static void run(const CacheWriteArgs& a) {
        for (int32_t t = 0; t < a.rows; ++t) {
            const int64_t j = a.position + t;
            if (a.keys) key(a.to, a.keys + t * a.ld, j);
            if (a.values) value(a.to, a.values + t * a.ld, j);
        }
    }

    static void key(const CacheHead& to, const float* x, int64_t j) {
        const Vec inverse = scale(to, x, to.key_scales, j);
        Type* out = static_cast<Type*>(to.keys) + j / kCacheBlock * to.head_dim * kCacheBlock + j % kCacheBlock;
        for (int32_t c = 0; c < to.head_dim; c += 16) {
            Vec part[kVecs16];
            load_16(x + c, to.head_dim - c, part);
            alignas(64) Type row[16];
            for (int v = 0; v < kVecs16; ++v) Element::put(row + v * Vec::kWidth, part[v], inverse);
            const int count = to.head_dim - c < 16 ? to.head_dim - c : 16;
            if (to.key_rows)
                __builtin_memcpy(static_cast<Type*>(to.key_rows) + (c / 16 * to.capacity + j) * kCacheBlock, row,
                                 sizeof(row));
            for (int i = 0; i < count; ++i) out[(c + i) * static_cast<int64_t>(kCacheBlock)] = row[i];
        }
    }

    static void value(const CacheHead& to, const float* x, int64_t j) {
        const Vec inverse = scale(to, x, to.value_scales, j);
        for (int32_t c = 0; c < to.head_dim; c += 16) {
            Vec part[kVecs16];
            load_16(x + c, to.head_dim - c, part);
            Type* out = static_cast<Type*>(to.values) + (c / 16 * to.capacity + j) * kCacheBlock;
            for (int v = 0; v < kVecs16; ++v) Element::put(out + v * Vec::kWidth, part[v], inverse);
        }
    }

    // 127 / max|x|, and what is stored beside the integers.
    static Vec scale(const CacheHead& to, const float* x, float* scales, int64_t j) {
        if (to.kind != CacheKind::kInt8) return zero();
        Vec highest = zero();
        for (int32_t c = 0; c < to.head_dim; c += 16) {
            Vec part[kVecs16];
            load_16(x + c, to.head_dim - c, part);
            for (int v = 0; v < kVecs16; ++v) highest = max_magnitude(highest, part[v]);
        }
        const float peak = reduce_magnitude(highest);
        const bool live = !(peak <= kQuantizeFloor);
        scales[j] = live ? peak * (1.0f / 127.0f) : 0.0f;
        return set1(live ? 127.0f / peak : 0.0f);
    }
};

inline void cache_write(const CacheWriteArgs& a) { with_cache_kind<CacheWrite>(a.to.kind, a); }

}  // namespace
}  // namespace approxrt
