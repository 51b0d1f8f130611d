// Causal attention over a cache: the definition.
#include <cmath>

#include "decoder_args.h"
#include "half.h"

namespace approxrt {
namespace {

float element(const CacheHead& cache, const void* base, int64_t at, const float* scales, int64_t token) {
    switch (cache.kind) {
        case CacheKind::kF32:
            return static_cast<const float*>(base)[at];
        case CacheKind::kF16:
            return float_from_half(static_cast<const uint16_t*>(base)[at]);
        case CacheKind::kInt8:
            break;
    }
    return static_cast<float>(static_cast<const int8_t*>(base)[at]) * scales[token];
}

}  // namespace

void cached_attention_scalar(const CachedAttentionArgs& a) {
    const CacheHead& cache = a.cache;
    const int64_t d = cache.head_dim;
    for (int32_t t = 0; t < a.tokens; ++t)
        for (int32_t h = 0; h < a.heads; ++h) {
            const float* q = a.q + t * a.ldq + h * d;
            float* out = a.out + t * a.ldo + h * d;
            const int64_t n = a.position + t + 1;
            float highest = -INFINITY;
            for (int64_t j = 0; j < n; ++j) {
                double score = 0.0;
                for (int64_t c = 0; c < d; ++c) {
                    const int64_t at = (j / kCacheBlock * d + c) * kCacheBlock + j % kCacheBlock;
                    score += static_cast<double>(q[c]) * element(cache, cache.keys, at, cache.key_scales, j);
                }
                a.scratch[j] = static_cast<float>(score) * a.scale;
                highest = a.scratch[j] > highest ? a.scratch[j] : highest;
            }
            double sum = 0.0;
            for (int64_t j = 0; j < n; ++j) sum += a.scratch[j] = std::exp(a.scratch[j] - highest);
            for (int64_t c = 0; c < d; ++c) {
                double total = 0.0;
                for (int64_t j = 0; j < n; ++j) {
                    const int64_t at = (c / kCacheBlock * cache.capacity + j) * kCacheBlock + c % kCacheBlock;
                    total +=
                        static_cast<double>(a.scratch[j]) * element(cache, cache.values, at, cache.value_scales, j);
                }
                out[c] = static_cast<float>(total / sum);
            }
        }
}

}  // namespace approxrt
