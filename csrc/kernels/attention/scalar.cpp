// Softmax attention of one head over one sequence: the definition.
#include <cmath>

#include "args.h"

namespace approxrt {
namespace {

int64_t at(int64_t row, int32_t c, int64_t ld, int64_t strip) { return c / 16 * strip + row * ld + c % 16; }

}  // namespace

void attention_scalar(const AttentionArgs& a) {
    float* p = a.scratch;
    for (int32_t i = a.query_begin; i < a.query_end; ++i) {
        float max = -INFINITY, sum = 0.0f;
        for (int32_t j = 0; j < a.n; ++j) {
            float s = 0.0f;
            for (int32_t c = 0; c < a.head_dim; ++c)
                s += a.q[at(i, c, a.ldq, a.q_strip)] * a.k[at(j, c, a.ld, a.strip)];
            // The scale is applied to differences, but where a bias comes on top of it.
            p[j] = a.bias ? a.scale * s + a.bias[i * a.ldb + j] : s;
            max = p[j] > max ? p[j] : max;
        }
        const float scale = a.bias ? 1.0f : a.scale;
        for (int32_t j = 0; j < a.n; ++j) sum += p[j] = std::exp(scale * (p[j] - max));
        for (int32_t c = 0; c < a.head_dim; ++c) {
            float o = 0.0f;
            for (int32_t j = 0; j < a.n; ++j) o += p[j] * a.v[at(j, c, a.ld, a.strip)];
            a.out[i * a.ldo + c] = o / sum;
        }
    }
}

}  // namespace approxrt
