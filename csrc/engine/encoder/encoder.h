// A post-norm transformer encoder with its task head, executed on a packed run of tokens.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/common/passes.h"
#include "context.h"
#include "model.h"

namespace approxrt {

class Encoder {
  public:
    Encoder(EncoderModel model, const KernelTable& kernels, std::shared_ptr<ThreadPool> pool,
            const Tuning& tuning = {});

    // Checks the batch; throws std::invalid_argument with the value and the limit.
    void check(const Batch& batch) const;
    // Floats that `forward` writes: rows x columns.
    int64_t output_rows(const Batch& batch, Output what) const;
    int32_t output_columns(Output what) const;

    // One forward pass. Safe to call from several threads at once. Needs no Python.
    void forward(const Batch& batch, Output what, float* out) const;

    void set_profiling(bool on) { passes_.set_profiling(on); }
    Profile take_profile() { return passes_.take_profile(); }

    int threads() const { return passes_.pool().threads(); }
    int missing_threads() const { return passes_.pool().missing(); }
    size_t weight_bytes() const { return weight_bytes_of(model_); }
    size_t scratch_bytes() const { return passes_.bytes(); }

  private:
    void run(const Batch& batch, Output what, float* out, Context& context) const;
    // Pooled states through the projections to `out`; `pooled` is overwritten.
    void project(float* pooled, int64_t ld, int32_t sequences, float* out, Context& context) const;
    // What the groups compute: hidden states where the head reads every token's.
    Output states(Output what) const {
        if (what != Output::kLogits) return what;
        return model_.head.per_token ? Output::kHidden : Output::kPooled;
    }
    void run_head(const float* states, int32_t count, float* out, Context& context) const;

    EncoderModel model_;
    const KernelTable& kernels_;
    const Tuning tuning_;
    mutable Passes<Context> passes_;
};

}  // namespace approxrt
