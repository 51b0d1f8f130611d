// A linear layer of any kind, ready to run on one kernel table.
#pragma once

#include <initializer_list>
#include <variant>

#include "../pack.h"
#include "../pack_int4.h"
#include "arena.h"

namespace approxrt {

// The form in which a linear reads its input: as it is, or quantised to the panels of one of two families.
enum class Input { kF32, kInt8, kInt4 };

class Linear {
  public:
    explicit Linear(F32Weights w) : weights_(std::move(w)) {}
    explicit Linear(Int8Weights w) : weights_(std::move(w)) {}
    explicit Linear(Int4Weights w) : weights_(std::move(w)) {}

    Input input() const { return static_cast<Input>(weights_.index()); }
    int32_t n() const;
    int32_t k() const;
    // Width of an output row: whole strips.
    int64_t n_padded() const { return round_up(n(), kTileN); }
    size_t bytes() const;
    // Products a token.
    int64_t macs() const;

    // y[rows, n_padded] = act(x W^T + b) (+ residual). `quantize` has prepared x in the scratch for
    // this linear; an f32 linear reads x itself.
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
    // In the order of Input.
    std::variant<F32Weights, Int8Weights, Int4Weights> weights_;
};

// The layout that linears of this input read, and the scratch that holds such panels: where int8 and int4
// panels are alike, one buffer serves both. Not for kF32.
const PanelLayout& panel_layout(const KernelTable& kernels, Input input);
Scratch& panel_scratch(const KernelTable& kernels, Input input, ThreadScratch& scratch);

// Quantises rows of x, once for each layout that the given linears read; they may be of different kinds.
void quantize(const KernelTable& kernels, std::initializer_list<const Linear*> linears, const float* x, int64_t ldx,
              int32_t rows, ThreadScratch& scratch);

}  // namespace approxrt
