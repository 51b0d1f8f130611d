// Softmax attention of one head with 16-bit products: the definition.
#include <algorithm>
#include <cmath>

#include "kernels/common/quantize_scalar.h"

namespace approxrt {
namespace {

int64_t at(int32_t c, int64_t strip) { return c / 16 * strip + c % 16; }

float scale_of(const float* x, int64_t strip, int32_t d, float limit) {
    int32_t bits = 0;
    for (int32_t c = 0; c < d; ++c) bits = std::max(bits, magnitude(x[at(c, strip)]));
    const auto peak = std::bit_cast<float>(bits);
    return is_live(peak) ? peak / limit : 0.0f;
}

// 0 for NaN, which a conversion would leave undefined; all others are within their limit.
int32_t integer(float x) { return std::isnan(x) ? 0 : static_cast<int32_t>(std::nearbyint(x)); }

int32_t rounded(float x, float scale) { return scale > 0.0f ? integer(x / scale) : 0; }

}  // namespace

void attention_int16_scalar(const AttentionArgs& a) {
    const float limit = int16_dot_limit(round_up(a.head_dim, 16));
    float* p = a.scratch;
    float* value_scales = p + a.n;
    float* key_scales = value_scales + a.n;
    for (int32_t j = 0; j < a.n; ++j) {
        key_scales[j] = scale_of(a.k + j * a.ld, a.strip, a.head_dim, limit);
        value_scales[j] = scale_of(a.v + j * a.ld, a.strip, a.head_dim, kValueLimit);
    }
    const auto largest = std::bit_cast<float>(peak_of(value_scales, a.n));
    for (int32_t i = a.query_begin; i < a.query_end; ++i) {
        const float* q = a.q + i * a.ldq;
        const float query_scale = scale_of(q, a.q_strip, a.head_dim, limit);
        float max = -INFINITY, sum = 0.0f;
        for (int32_t j = 0; j < a.n; ++j) {
            int32_t s = 0;
            for (int32_t c = 0; c < a.head_dim; ++c)
                s += rounded(q[at(c, a.q_strip)], query_scale) * rounded(a.k[j * a.ld + at(c, a.strip)], key_scales[j]);
            p[j] = a.scale * query_scale * key_scales[j] * static_cast<float>(s);
            if (a.bias) p[j] += a.bias[i * a.ldb + j];
            max = p[j] > max ? p[j] : max;
        }
        for (int32_t j = 0; j < a.n; ++j) {
            const float e = std::exp(p[j] - max);
            sum += e;
            p[j] = largest > 0.0f ? e * value_scales[j] / largest * kWeightLimit : 0.0f;
        }
        for (int32_t c = 0; c < a.head_dim; ++c) {
            float total = 0.0f;
            for (int32_t first = 0; first < a.n; first += kWeightChunk) {
                int32_t o = 0;
                for (int32_t j = first; j < a.n && j < first + kWeightChunk; ++j)
                    o += integer(p[j]) * rounded(a.v[j * a.ld + at(c, a.strip)], value_scales[j]);
                total += static_cast<float>(o);
            }
            a.out[i * a.ldo + c] = total * (largest / kWeightLimit) / sum;
        }
    }
}

}  // namespace approxrt
