// A linear layer of any kind, ready to run on one kernel table, and the quantised rows that it reads.
#pragma once

#include <optional>

#include "../pack.h"
#include "scratch.h"

namespace approxrt {

// Rows of activations as int8 linears read them: panels of `layout.mr` rows, and a scale a row.
class QuantizedRows {
  public:
    void reserve(const KernelTable& kernels, int32_t rows, int64_t k) {
        panels_.get<char>(kernels.layout.bytes(rows, k));
        scales_.get<float>(rows);
    }
    // Quantises `rows` rows of x as rows first .. of the whole; `first` is a multiple of layout.mr.
    void fill(const KernelTable& kernels, int32_t first, const float* x, int64_t ldx, int32_t rows, int32_t k) {
        char* panels = panels_.get<char>(0) + kernels.layout.bytes(first, k);
        kernels.quantize_rows({x, ldx, rows, k, panels, scales_.get<float>(0) + first});
    }
    const void* panels() const { return panels_.data<char>(); }
    const float* scales() const { return scales_.data<float>(); }
    size_t bytes() const { return panels_.bytes() + scales_.bytes(); }

  private:
    Scratch panels_, scales_;
};

class Linear {
  public:
    explicit Linear(F32Weights w) : f32_(std::move(w)) {}
    explicit Linear(Int8Weights w) : int8_(std::move(w)) {}

    bool is_int8() const { return int8_.has_value(); }
    int32_t n() const { return int8_ ? int8_->packed().n : f32_->packed().n; }
    int32_t k() const { return int8_ ? int8_->packed().k : f32_->packed().k; }
    // Width of an output row: whole strips.
    int64_t n_padded() const { return round_up(n(), kTileN); }
    int32_t strips() const { return static_cast<int32_t>(n_padded() / kTileN); }
    size_t bytes() const { return int8_ ? int8_->bytes() : f32_->bytes(); }
    // Products a token, of all strips or of some.
    int64_t macs() const { return macs(0, strips()); }
    int64_t macs(int32_t strip_begin, int32_t strip_end) const;

    // What a linear reads: rows of x, and the same rows quantised if it is int8.
    struct In {
        const float* x;
        int64_t ldx;
        int32_t rows;
        const QuantizedRows* quantized;
    };
    // What it writes: y = act(x W^T + b) (+ residual), column 0 being that of the first strip (args.h).
    struct Out {
        float* y;
        int64_t ldy;
        const float* residual = nullptr;
        int64_t ldr = 0;
        Act act = Act::kIdentity;
        int64_t y_strip = kTileN;
    };
    void run(const KernelTable& kernels, const In& in, const Out& out) const { run(kernels, in, out, 0, strips()); }
    void run(const KernelTable& kernels, const In& in, const Out& out, int32_t strip_begin, int32_t strip_end) const;

  private:
    std::optional<F32Weights> f32_;
    std::optional<Int8Weights> int8_;
};

}  // namespace approxrt
