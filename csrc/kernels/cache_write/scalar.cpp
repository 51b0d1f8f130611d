// Keys and values into the cache: the definition of its layout and of its int8.
#include "decoder_args.h"
#include "half.h"
#include "kernels/common/quantize_scalar.h"

namespace approxrt {
namespace {

void put(const CacheHead& to, void* base, int64_t at, float x, float inverse) {
    switch (to.kind) {
        case CacheKind::kF32:
            static_cast<float*>(base)[at] = x;
            break;
        case CacheKind::kF16:
            static_cast<uint16_t*>(base)[at] = half_from_float(x);
            break;
        case CacheKind::kInt8:
            static_cast<int8_t*>(base)[at] = quantized(x * inverse);
    }
}

// A row in strips of 16, zeros behind its end.
void put_row(const CacheHead& to, void* rows, const float* x, int64_t token, float inverse) {
    for (int64_t c = 0; c < round_up(to.head_dim, kCacheBlock); ++c)
        put(to, rows, (c / kCacheBlock * to.capacity + token) * kCacheBlock + c % kCacheBlock,
            c < to.head_dim ? x[c] : 0.0f, inverse);
}

// 127 / max, and the scale stored.
float quantize_scale(const CacheHead& to, const float* x, float* scales, int64_t token) {
    if (to.kind != CacheKind::kInt8) return 0.0f;
    const auto max = std::bit_cast<float>(peak_of(x, to.head_dim));
    const bool live = is_live(max);
    scales[token] = live ? max * (1.0f / 127.0f) : 0.0f;
    return live ? 127.0f / max : 0.0f;
}

}  // namespace

void cache_write_scalar(const CacheWriteArgs& a) {
    const CacheHead& to = a.to;
    for (int32_t t = 0; t < a.rows; ++t) {
        const int64_t j = a.position + t;
        if (a.keys) {
            const float* x = a.keys + t * a.ld;
            const float inverse = quantize_scale(to, x, to.key_scales, j);
            for (int64_t c = 0; c < to.head_dim; ++c)
                put(to, to.keys, (j / kCacheBlock * to.head_dim + c) * kCacheBlock + j % kCacheBlock, x[c], inverse);
            if (to.key_rows) put_row(to, to.key_rows, x, j, inverse);
        }
        if (a.values) {
            const float* x = a.values + t * a.ld;
            const float inverse = quantize_scale(to, x, to.value_scales, j);
            put_row(to, to.values, x, j, inverse);
        }
    }
}

}  // namespace approxrt
