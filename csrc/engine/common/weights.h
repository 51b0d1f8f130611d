// A linear layer of any kind, ready to run on one kernel table, and the quantised rows that it reads.
#pragma once

#include <initializer_list>
#include <variant>

#include "pack.h"
#include "pack_groups.h"
#include "pack_int4.h"
#include "ahead.h"
#include "scratch.h"

namespace approxrt {

// The form in which a linear reads its input: as it is, or quantised to the panels of one of three families.
enum class Input { kF32, kInt8, kInt4, kGroups };

class Linear;

// Which quantised forms of some rows are read.
struct Forms {
    bool int8 = false, int4 = false, groups = false;

    Forms() = default;
    Forms(std::initializer_list<const Linear*> readers);
    bool any() const { return int8 || int4 || groups; }
    void add(Forms other) {
        int8 |= other.int8;
        int4 |= other.int4;
        groups |= other.groups;
    }
};

// Rows as weights with group scales read them, in panels of `mr`.
class GroupRows {
  public:
    void reserve(int32_t mr, int32_t rows, int64_t k) {
        mr_ = mr;
        data_.get<char>(GroupPanels{mr}.bytes(rows, k));
        scales_.get<float>(rows);
    }
    // Rows first .. of the whole; `first` is a multiple of mr.
    void fill(const KernelTable& kernels, int32_t first, const float* x, int64_t ldx, int32_t rows, int32_t k) {
        kernels.quantize_groups({.x = x,
                                 .ldx = ldx,
                                 .rows = rows,
                                 .k = k,
                                 .mr = mr_,
                                 .panels = data_.get<char>(0) + GroupPanels{mr_}.bytes(first, k),
                                 .scales = scales_.get<float>(0) + first});
    }
    // The same in one panel of just these rows, no more than were reserved.
    void fill_one(const KernelTable& kernels, const float* x, int64_t ldx, int32_t rows, int32_t k) {
        mr_ = rows;
        fill(kernels, 0, x, ldx, rows, k);
    }
    const void* panels() const { return data_.data<char>(); }
    const float* scales() const { return scales_.data<float>(); }
    int32_t mr() const { return mr_; }
    size_t bytes() const { return data_.bytes() + scales_.bytes(); }

  private:
    Scratch data_, scales_;
    int32_t mr_ = 1;
};

// Rows of activations as quantised linears read them: panels of `mr` rows, and a scale a row, which is the same for
// int8 and int4. Where the layouts are the same, so are the panels.
class QuantizedRows {
  public:
    void reserve(const KernelTable& kernels, Forms forms, int32_t rows, int64_t k);
    // Quantises `rows` rows of x as rows first .. of the whole; `first` is a multiple of mr.
    void fill(const KernelTable& kernels, Forms forms, int32_t first, const float* x, int64_t ldx, int32_t rows,
              int32_t k);
    const void* panels(const KernelTable& kernels, Input input) const;
    const float* scales() const { return scales_.data<float>(); }
    const GroupRows& groups() const { return groups_; }
    size_t bytes() const { return int8_.bytes() + int4_.bytes() + scales_.bytes() + groups_.bytes(); }

  private:
    // int4_: only where its layout differs.
    Scratch int8_, int4_, scales_;
    GroupRows groups_;
};

class Linear {
  public:
    // Without weights: a place to put a packed linear. Nothing but assignment is allowed until then.
    Linear() = default;
    explicit Linear(F32Weights w) : weights_(std::move(w)) {}
    explicit Linear(Int8Weights w) : weights_(std::move(w)) {}
    explicit Linear(Int4Weights w) : weights_(std::move(w)) {}
    explicit Linear(GroupWeights w) : weights_(std::move(w)) {}

    Input input() const { return static_cast<Input>(weights_.index()); }
    bool is_f32() const { return input() == Input::kF32; }
    int32_t n() const;
    int32_t k() const;
    // Width of an output row: whole strips.
    int64_t n_padded() const { return round_up(n(), kTileN); }
    int32_t strips() const { return static_cast<int32_t>(n_padded() / kTileN); }
    size_t bytes() const;
    // Where the weights of some strips lie.
    Span memory(int32_t strip_begin, int32_t strip_end) const;
    // Products a token, of all strips or of some.
    int64_t macs() const { return macs(0, strips()); }
    int64_t macs(int32_t strip_begin, int32_t strip_end) const;

    // What a linear reads: rows of x, and the same rows quantised in its form if it is not f32.
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
    // The same of at most kGemvTokens tokens, by the gemv kernels; int8 and int4 weights only.
    void run_few(const KernelTable& kernels, const TokenRows& rows, const Out& out, int32_t strip_begin,
                 int32_t strip_end) const;
    // The same of weights with group scales, in whatever panels.
    void run_groups(const KernelTable& kernels, const GroupRows& in, int32_t rows, const Out& out, int32_t strip_begin,
                    int32_t strip_end) const;

  private:
    GemmInt8Args integer_args(int32_t rows, const float* act_scales, const Out& out, int32_t strip_begin,
                              int32_t strip_end) const;

    // In the order of Input.
    std::variant<F32Weights, Int8Weights, Int4Weights, GroupWeights> weights_;
};

}  // namespace approxrt
