// A pre-norm decoder with its head, executed on new tokens of several sequences at once.
#pragma once

#include <array>
#include <atomic>
#include <memory>

#include "thread_pool.h"
#include "context.h"

namespace approxrt {

struct Step {
    const int32_t* ids;  // [tokens]
    const SequenceRun* runs;
    int32_t count;        // of runs
    int32_t tokens;       // their sum
    bool all_logits;      // of every token; else of each run's last one
    float* logits;        // rows of round_up(vocab, 16)
    bool hidden = false;  // not logits but what the head would read of every token: rows of round_up(hidden, 16)

    int32_t logit_rows() const { return all_logits || hidden ? tokens : count; }
};

class Decoder {
  public:
    Decoder(DecoderModel model, const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, int32_t block_tokens);
    ~Decoder();

    // Checks ids, and that every cache has room; throws std::invalid_argument with the value and the limit.
    void check(const Step& step) const;
    // Appends the tokens to their caches and computes logits. Safe to call from several threads at once with different
    // caches. A sequence's result depends neither on the others of the step nor on how its tokens are divided into
    // steps. Needs no Python.
    void run(const Step& step) const;

    void set_profiling(bool on) { profiling_ = on; }
    Profile take_profile() { return profile_.take(); }

    const DecoderModel& model() const { return model_; }
    int threads() const { return pool_->threads(); }
    size_t weight_bytes() const;
    size_t scratch_bytes() const;

  private:
    DecoderContext* acquire() const;
    void release(DecoderContext* context) const;

    DecoderModel model_;
    const KernelTable& kernels_;
    std::shared_ptr<ThreadPool> pool_;
    const int32_t block_tokens_;
    Forms forms_;  // that any linear reads
    std::atomic<bool> profiling_{false};
    mutable ProfileSum profile_;
    mutable std::array<std::atomic<DecoderContext*>, 32> idle_{};
};

}  // namespace approxrt
