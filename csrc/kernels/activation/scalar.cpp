// The definition of the activations, in double inside so that it can serve as the reference:
//   gelu(x)      = x Phi(x), Phi the normal distribution function
//   silu(x)      = x / (1 + e^-x)
//   gelu_tanh(x) = x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))
#include <cmath>

#include "args.h"

namespace approxrt {

float activate_scalar(float x, Act act) {
    const double d = x;
    switch (act) {
        case Act::kGelu:
            return static_cast<float>(d * 0.5 * std::erfc(-d * 0.70710678118654752440));
        case Act::kGeluTanh:
            return static_cast<float>(0.5 * d * (1.0 + std::tanh(0.79788456080286535588 * (d + 0.044715 * d * d * d))));
        case Act::kRelu:
            return x > 0.0f ? x : 0.0f;
        case Act::kTanh:
            return static_cast<float>(std::tanh(d));
        case Act::kSilu:
            return static_cast<float>(d / (1.0 + std::exp(-d)));
        case Act::kIdentity:
            break;
    }
    return x;
}

void activation_scalar(const ActivationArgs& a) {
    for (int64_t i = 0; i < a.count; ++i) a.x[i] = activate_scalar(a.x[i], a.act);
}

}  // namespace approxrt
