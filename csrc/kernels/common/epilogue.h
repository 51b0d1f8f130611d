// What happens to a register block of sums before it is stored: scale, bias, activation, residual.
//
// A kernel parks its accumulators in a small buffer (L1) and one loop finishes them. Unrolled over the
// block instead, five activations times 24 rows would bury the product loop in code and spills, for a
// gain of one store and one load a vector.
#pragma once

#include "args.h"

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
    with_act(a.act, [&](auto act) {
        // Copies: vectors may be stored over anything, so that what is only referred to would be loaded again a row.
        const int32_t* from = sums;
        const float* scales = a.act_scales + row;
        const int64_t ldy = a.ldy, ldr = a.ldr;
        float* out = a.y + behind * a.y_strip + row * ldy;
        const float* residual = a.residual ? a.residual + behind * kTileN + row * ldr : nullptr;
        Vec scale[kCount], bias[kCount];
        for (int v = 0; v < kCount; ++v) {
            scale[v] = load(w.scale + column + v * W);
            bias[v] = load(w.bias + column + v * W);
        }
        for (int32_t r = rows; r; --r, from += kTileN, ++scales, out += ldy) {
            const Vec s = broadcast(scales);
            Vec y[kCount];
            for (int v = 0; v < kCount; ++v) y[v] = act(fma(load_i32(from + v * W), mul(s, scale[v]), bias[v]));
            if (residual) {
                for (int v = 0; v < kCount; ++v) y[v] = add(y[v], load(residual + v * W));
                residual += ldr;
            }
            for (int v = 0; v < kCount; ++v) store(out + v * W, y[v]);
        }
    });
}

// sums [rows][16], bias not yet added.
[[maybe_unused]] __attribute__((noinline)) void finish_f32(const GemmF32Args& a, int32_t row, int32_t rows,
                                                           int32_t strip, const float* sums) {
    constexpr int W = Vec::kWidth, kCount = kTileN / W;
    const int64_t behind = strip - a.strip_begin;
    with_act(a.act, [&](auto act) {
        const float* from = sums;
        const int64_t ldy = a.ldy, ldr = a.ldr;
        float* out = a.y + behind * a.y_strip + row * ldy;
        const float* residual = a.residual ? a.residual + behind * kTileN + row * ldr : nullptr;
        Vec bias[kCount];
        for (int v = 0; v < kCount; ++v) bias[v] = load(a.w->bias + static_cast<int64_t>(strip) * kTileN + v * W);
        for (int32_t r = rows; r; --r, from += kTileN, out += ldy) {
            Vec y[kCount];
            for (int v = 0; v < kCount; ++v) y[v] = act(add(load(from + v * W), bias[v]));
            if (residual) {
                for (int v = 0; v < kCount; ++v) y[v] = add(y[v], load(residual + v * W));
                residual += ldr;
            }
            for (int v = 0; v < kCount; ++v) store(out + v * W, y[v]);
        }
    });
}

}  // namespace
}  // namespace approxrt
