// A post-norm transformer encoder with its task head, executed on a packed run of tokens.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../thread_pool.h"
#include "profile.h"
#include "weights.h"

namespace approxrt {

enum class Pooling { kCls, kMean };

struct Norm {
    std::vector<float> gamma, beta;
};

struct EncoderLayer {
    int32_t num_heads, head_dim, intermediate;
    Linear query, key, value, output, up, down;
    Norm attention_norm, ffn_norm;
};

// Tables stay where the caller has them (a memory map): the owner keeps them alive.
struct Embeddings {
    int32_t vocab, width, max_positions, types;
    const float* word = nullptr;
    const int8_t* word_q = nullptr;
    const uint8_t* word_q4 = nullptr;
    const uint8_t* word_group_scale = nullptr;
    const float* word_scale = nullptr;
    const float* position = nullptr;
    const float* token_type = nullptr;
    Norm norm;
    std::optional<Linear> projection;
};

struct Head {
    Pooling pooling;
    Act dense_act = Act::kTanh;
    std::optional<Linear> dense, out;
};

struct EncoderModel {
    int32_t hidden;
    float eps;
    Act activation;
    Embeddings embeddings;
    std::vector<EncoderLayer> layers;
    Head head;

    template <class Body>
    void each_linear(const Body& body) const;
    // Whether any linear does.
    bool reads(Input input) const;
};

// What a forward pass returns.
enum class Output {
    kHidden,  // [tokens, hidden]: the last hidden states
    kPooled,  // [sequences, hidden]
    kLogits,  // [sequences, outputs]
};

// tokens of all sequences one after the other; sequence i is cu_seqlens[i] .. cu_seqlens[i+1]-1.
struct Batch {
    const int32_t* ids;
    const int32_t* types;  // null: all 0
    const int32_t* cu_seqlens;
    int32_t sequences;

    int32_t tokens() const { return cu_seqlens[sequences]; }
};

class Encoder {
  public:
    Encoder(EncoderModel model, const KernelTable& kernels, std::shared_ptr<ThreadPool> pool);
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
    struct Pass;

    Context* acquire() const;
    void release(Context* context) const;

    EncoderModel model_;
    const KernelTable& kernels_;
    std::shared_ptr<ThreadPool> pool_;
    std::atomic<bool> profiling_{false};
    mutable ProfileSum profile_;
    // Idle contexts. A lock-free set: a fork in the middle of a call leaves the child a usable one.
    mutable std::array<std::atomic<Context*>, 32> idle_{};
};

}  // namespace approxrt
