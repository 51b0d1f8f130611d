// Signs and sums beside a cache (decoder_args.h has the definition).
#pragma once

#include "sign_planes.h"
#include "kernels/common/sign_turn.h"

namespace approxrt {
namespace {

template <class Element>
struct SignIndex {
    using Type = typename Element::Type;

    // Rows are kept as cache_write writes values.
    static Vec element(const void* rows, const CacheHead& cache, const float* scales, int64_t j, int32_t c) {
        const Vec x = Element::get(static_cast<const Type*>(rows) + (c / 16 * cache.capacity + j) * 16 + c % 16);
        return cache.kind == CacheKind::kInt8 ? mul(x, set1(scales[j])) : x;
    }

    static void run(const SignIndexArgs& a) {
        const CacheHead& cache = a.cache;
        const int32_t d = cache.head_dim;
        alignas(64) float key[kMostSignDim + 16], turned[kMostSignDim + 16];
        for (int64_t j = a.begin; j < a.end; ++j) {
            for (int32_t c = 0; c < d; c += Vec::kWidth)
                store(key + c, element(cache.key_rows, cache, cache.key_scales, j, c));
            if (a.sign.rotation) turn(a.sign, key, d, a.sign.centre, turned);
            write_signs(a.sign.rotation ? turned : key, a.sign.signs, j, a.sign.planes);
            if (!a.sign.key_sums || j % kSumBlock != kSumBlock - 1) continue;
            add_block(cache.key_rows, cache, cache.key_scales, j / kSumBlock, a.sign.key_sums);
            add_block(cache.values, cache, cache.value_scales, j / kSumBlock, a.sign.value_sums);
        }
    }

    static void add_block(const void* rows, const CacheHead& cache, const float* scales, int64_t block, float* sums) {
        const int64_t d16 = round_up(cache.head_dim, 16);
        float* to = sums + (block + 1) * d16;
        for (int32_t c = 0; c < cache.head_dim; c += Vec::kWidth) {
            Vec sum = block ? load(to - d16 + c) : zero();
            for (int64_t j = block * kSumBlock; j < (block + 1) * kSumBlock; ++j)
                sum = add(sum, element(rows, cache, scales, j, c));
            store(to + c, sum);
        }
    }
};

inline void sign_index(const SignIndexArgs& a) { with_cache_kind<SignIndex>(a.cache.kind, a); }

}  // namespace
}  // namespace approxrt
