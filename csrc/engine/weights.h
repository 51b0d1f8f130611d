// A linear layer of any kind, ready to run on one kernel table.
#pragma once

#include <optional>

#include "../pack.h"
#include "arena.h"

namespace approxrt {

class Linear {
  public:
    // Without weights: a place to put a packed linear. Nothing but assignment is allowed until then.
    Linear() = default;
    explicit Linear(F32Weights w) : f32_(std::move(w)) {}
    explicit Linear(Int8Weights w) : int8_(std::move(w)) {}

    bool is_int8() const { return int8_.has_value(); }
    int32_t n() const { return int8_ ? int8_->packed().n : f32_->packed().n; }
    int32_t k() const { return int8_ ? int8_->packed().k : f32_->packed().k; }
    // Width of an output row: whole strips.
    int64_t n_padded() const { return round_up(n(), kTileN); }
    size_t bytes() const { return int8_ ? int8_->bytes() : f32_->bytes(); }
    // Products a token.
    int64_t macs() const;

    // y[rows, n_padded] = act(x W^T + b) (+ residual). `quantized` is what `quantize` left in the scratch
    // for the same x; it is not read by an f32 linear.
    struct Rows {
        const float* x;
        int64_t ldx;
        int32_t rows;
        float* y;
        int64_t ldy;
        const float* residual = nullptr;
        int64_t ldr = 0;
        Act act = Act::kIdentity;
    };
    void run(const KernelTable& kernels, const Rows& rows, ThreadScratch& scratch) const;

  private:
    std::optional<F32Weights> f32_;
    std::optional<Int8Weights> int8_;
};

// Quantises rows of x into scratch.panels and scratch.scales, for the int8 linears that read x.
void quantize(const KernelTable& kernels, const float* x, int64_t ldx, int32_t rows, int32_t k, ThreadScratch& scratch);

}  // namespace approxrt
