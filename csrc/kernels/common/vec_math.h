// exp, GELU and tanh on Vec lanes. Coefficients are minimax fits made for this project (iteratively
// reweighted least squares in float64); the bounds are checked over the whole range in the tests.
#pragma once

#include "args.h"

namespace approxrt {
namespace {

// e^x for x <= 88: 2^round(x log2 e) times a degree-6 polynomial on the rest; relative error < 3e-7.
// Below -87.3 the result stays at the smallest normal number instead of underflowing. Of NaN it is NaN: of that and a
// number, min and max return the second operand.
inline Vec exp(Vec x) {
    x = min(set1(88.0f), max(set1(-87.3f), x));
    const Vec t = mul(x, set1(1.44269504088896341f));
    const Vec n = round_even(t);
    // ln 2 in two parts, so that the reduction is exact in the leading bits.
    Vec r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    const Vec f = mul(r, set1(1.44269504088896341f));
    Vec p = set1(0.00015345806605182588f);
    p = fma(p, f, set1(0.0013399932067841291f));
    p = fma(p, f, set1(0.009618489071726799f));
    p = fma(p, f, set1(0.05550328642129898f));
    p = fma(p, f, set1(0.24022646248340607f));
    p = fma(p, f, set1(0.6931471824645996f));
    p = fma(p, f, set1(1.0f));
    return mul(p, pow2(n));
}

// x Phi(x) with Phi(x) - 1/2 = x P(2 x^2 / 5.2^2 - 1) on |x| <= 5.2, constant outside; absolute error < 1.3e-6 on
// |x| <= 12. A polynomial alone: a division takes as long as ten of its steps and more, and is half of a sparse FFN's
// epilogue. In a variable of [-1, 1] its coefficients are small, and so are the roundings.
inline Vec gelu(Vec x) {
    const Vec c = min(max(x, set1(-5.2f)), set1(5.2f));
    const Vec w = fma(mul(c, c), set1(0.07396449893712997f), set1(-1.0f));
    Vec p = set1(0.0008164058090187609f);
    p = fma(p, w, set1(-0.002483862219378352f));
    p = fma(p, w, set1(0.0029644854366779327f));
    p = fma(p, w, set1(-0.0035511692985892296f));
    p = fma(p, w, set1(0.00745018245652318f));
    p = fma(p, w, set1(-0.013066270388662815f));
    p = fma(p, w, set1(0.018434682860970497f));
    p = fma(p, w, set1(-0.02460631914436817f));
    p = fma(p, w, set1(0.03189794346690178f));
    p = fma(p, w, set1(-0.0399395190179348f));
    p = fma(p, w, set1(0.050030823796987534f));
    p = fma(p, w, set1(-0.0677434653043747f));
    p = fma(p, w, set1(0.13594992458820343f));
    return mul(x, fma(c, p, set1(0.5f)));
}

// tanh x = 1 - 2 / (e^2x + 1); absolute error < 3e-7.
inline Vec tanh(Vec x) {
    const Vec e = exp(mul(min(set1(10.0f), max(set1(-10.0f), x)), set1(2.0f)));
    return sub(set1(1.0f), div(set1(2.0f), add(e, set1(1.0f))));
}

inline Vec gelu_tanh(Vec x) {
    const Vec inner = mul(x, fma(mul(x, x), set1(0.79788456080286536f * 0.044715f), set1(0.79788456080286536f)));
    const Vec half = mul(x, set1(0.5f));
    return fma(half, tanh(inner), half);
}

// x / (1 + e^-x): the exponential errs by 3e-7 of itself, and so does the result at most.
inline Vec silu(Vec x) { return div(x, add(set1(1.0f), exp(sub(zero(), x)))); }

inline Vec activate(Vec x, Act act) {
    switch (act) {
        case Act::kGelu:
            return gelu(x);
        case Act::kGeluTanh:
            return gelu_tanh(x);
        case Act::kRelu:
            return max(x, zero());
        case Act::kTanh:
            return tanh(x);
        case Act::kSilu:
            return silu(x);
        case Act::kIdentity:
            break;
    }
    return x;
}

}  // namespace
}  // namespace approxrt
