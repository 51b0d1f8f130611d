// Gated activations on Vec.
#pragma once

#include "decoder_args.h"

namespace approxrt {
namespace {

inline void gated(const GatedArgs& a) {
    constexpr int W = Vec::kWidth;
    const int32_t whole = a.width / W * W, rest = a.width - whole;
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* gate = a.gate + t * a.ldg;
        const float* up = a.up + t * a.ldu;
        float* y = a.y + t * a.ldy;
        for (int32_t i = 0; i < whole; i += W) store(y + i, mul(activate(load(gate + i), a.act), load(up + i)));
        if (rest) store_n(y + whole, mul(activate(load_n(gate + whole, rest), a.act), load_n(up + whole, rest)), rest);
    }
}

}  // namespace
}  // namespace approxrt
