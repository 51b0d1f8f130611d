// What happens to a register block of sums before it is stored: scale, bias, activation, residual.
//
// A kernel parks its accumulators in a small buffer (L1) and one loop finishes them. Unrolled over the
// block instead, five activations times 24 rows would bury the product loop in code and spills, for a
// gain of one store and one load a vector.
#pragma once

#include "../args.h"

namespace approxrt {
namespace {

// The activation is chosen once a block, not once a vector.
template <class Body>
inline void with_act(Act act, const Body& body) {
    switch (act) {
        case Act::kGelu:
            return body([](Vec x) { return gelu(x); });
        case Act::kGeluTanh:
            return body([](Vec x) { return gelu_tanh(x); });
        case Act::kRelu:
            return body([](Vec x) { return max(x, zero()); });
        case Act::kTanh:
            return body([](Vec x) { return tanh(x); });
        case Act::kSilu:
            return body([](Vec x) { return silu(x); });
        case Act::kIdentity:
            return body([](Vec x) { return x; });
    }
}

// sums [rows][16] of tokens row.. and strip `strip`, corrected already.
[[maybe_unused]] __attribute__((noinline)) void finish_int8(const GemmInt8Args& a, int32_t row, int32_t rows,
                                                            int32_t strip, const int32_t* sums) {
    constexpr int W = Vec::kWidth, kCount = kTileN / W;
    const PackedInt8& w = *a.w;
    const int64_t column = static_cast<int64_t>(strip) * kTileN;
    if (a.accumulators)
        for (int32_t r = 0; r < rows; ++r)
            for (int o = 0; o < kTileN; ++o)
                a.accumulators[(row + r) * static_cast<int64_t>(w.strips) * kTileN + column + o] = sums[r * kTileN + o];
    const int64_t behind = strip - a.strip_begin;
    float* out = a.y + behind * a.y_strip;
    const float* residual = a.residual ? a.residual + behind * kTileN : nullptr;
    Vec scale[kCount], bias[kCount];
    for (int v = 0; v < kCount; ++v) {
        scale[v] = load(w.scale + column + v * W);
        bias[v] = load(w.bias + column + v * W);
    }
    with_act(a.act, [&](auto act) {
        for (int32_t r = 0; r < rows; ++r) {
            const int64_t t = row + r;
            const Vec s = broadcast(a.act_scales + t);
            for (int v = 0; v < kCount; ++v) {
                Vec y = act(fma(load_i32(sums + r * kTileN + v * W), mul(s, scale[v]), bias[v]));
                if (residual) y = add(y, load(residual + t * a.ldr + v * W));
                store(out + t * a.ldy + v * W, y);
            }
        }
    });
}

// sums [rows][16], bias not yet added.
[[maybe_unused]] __attribute__((noinline)) void finish_f32(const GemmF32Args& a, int32_t row, int32_t rows,
                                                           int32_t strip, const float* sums) {
    const int64_t column = static_cast<int64_t>(strip) * kTileN, behind = strip - a.strip_begin;
    float* out = a.y + behind * a.y_strip;
    const float* residual = a.residual ? a.residual + behind * kTileN : nullptr;
    with_act(a.act, [&](auto act) {
        for (int32_t r = 0; r < rows; ++r) {
            const int64_t t = row + r;
            for (int o = 0; o < kTileN; o += Vec::kWidth) {
                Vec y = act(add(load(sums + r * kTileN + o), load(a.w->bias + column + o)));
                if (residual) y = add(y, load(residual + t * a.ldr + o));
                store(out + t * a.ldy + o, y);
            }
        }
    });
}

}  // namespace
}  // namespace approxrt
