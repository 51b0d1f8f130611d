// A pre-norm decoder with its head, executed on new tokens of several sequences at once.
#pragma once

#include <memory>

#include "engine/common/passes.h"
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

    // Checks ids, and that every cache has room; throws std::invalid_argument with the value and the limit.
    void check(const Step& step) const;
    // Appends the tokens to their caches and computes logits. Safe to call from several threads at once with different
    // caches. A sequence's result depends neither on the others of the step nor on how its tokens are divided into
    // steps. Needs no Python.
    void run(const Step& step) const;

    void set_profiling(bool on) { passes_.set_profiling(on); }
    Profile take_profile() { return passes_.take_profile(); }

    const DecoderModel& model() const { return model_; }
    int threads() const { return passes_.pool().threads(); }
    int missing_threads() const { return passes_.pool().missing(); }
    size_t weight_bytes() const { return weight_bytes_of(model_); }
    size_t scratch_bytes() const { return passes_.bytes(); }

  private:
    DecoderModel model_;
    const KernelTable& kernels_;
    const int32_t block_tokens_;
    const Forms forms_;  // that any linear reads
    mutable Passes<DecoderContext> passes_;
};

}  // namespace approxrt
