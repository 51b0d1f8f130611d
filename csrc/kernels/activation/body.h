// Activations in place on Vec.
#pragma once

#include "args.h"

namespace approxrt {
namespace {

inline void activation(const ActivationArgs& a) {
    constexpr int W = Vec::kWidth;
    int64_t i = 0;
    for (; i + W <= a.count; i += W) store(a.x + i, activate(load(a.x + i), a.act));
    const int rest = static_cast<int>(a.count - i);
    if (rest) store_n(a.x + i, activate(load_n(a.x + i, rest), a.act), rest);
}

}  // namespace
}  // namespace approxrt
