// A post-norm transformer encoder with its task head, executed on a packed run of tokens.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "thread_pool.h"
#include "context.h"
#include "model.h"

namespace approxrt {

class Encoder {
  public:
    Encoder(EncoderModel model, const KernelTable& kernels, std::shared_ptr<ThreadPool> pool,
            const Tuning& tuning = {});
    ~Encoder();

    // Checks the batch; throws std::invalid_argument with the value and the limit.
    void check(const Batch& batch) const;
    // Floats that `forward` writes: rows x columns.
    int64_t output_rows(const Batch& batch, Output what) const;
    int32_t output_columns(Output what) const;

    // One forward pass. Safe to call from several threads at once. Needs no Python.
    void forward(const Batch& batch, Output what, float* out) const;

    // Passes that begin while this is on are timed by operator; `take_profile` returns their sum and clears it.
    void set_profiling(bool on) { profiling_ = on; }
    Profile take_profile() { return profile_.take(); }

    const EncoderModel& model() const { return model_; }
    const KernelTable& kernels() const { return kernels_; }
    int threads() const { return pool_->threads(); }
    size_t weight_bytes() const;
    size_t scratch_bytes() const;

  private:
    void run(const Batch& batch, Output what, float* out, Context& context) const;
    void run_head(const float* pooled, int32_t sequences, float* out, Context& context) const;
    Context* acquire() const;
    void release(Context* context) const;

    EncoderModel model_;
    const KernelTable& kernels_;
    std::shared_ptr<ThreadPool> pool_;
    const Tuning tuning_;
    std::atomic<bool> profiling_{false};
    mutable ProfileSum profile_;
    // Idle contexts. A lock-free set: a fork in the middle of a call leaves the child a usable one.
    mutable std::array<std::atomic<Context*>, 32> idle_{};
};

}  // namespace approxrt
