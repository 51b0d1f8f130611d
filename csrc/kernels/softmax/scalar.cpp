// Softmax numerators and the reciprocal of their sum, shifted by the row's maximum: the definition.
#include <cmath>

#include "args.h"

namespace approxrt {

void softmax_scalar(const SoftmaxArgs& a) {
    for (int32_t t = 0; t < a.rows; ++t) {
        float* x = a.x + t * a.ldx;
        float max = x[0];
        for (int32_t i = 1; i < a.n; ++i) max = x[i] > max ? x[i] : max;
        float sum = 0.0f;
        for (int32_t i = 0; i < a.n; ++i) {
            x[i] = std::exp(a.scale * (x[i] - max));
            sum += x[i];
        }
        a.inv_sum[t] = 1.0f / sum;
    }
}

}  // namespace approxrt
