// The layers of an encoder over one group of sequences, by one thread or by a team.
//
// A layer is two steps. Attention is split by heads: a part computes query, key and value of its heads and attends at
// once, while they are in its cache. The rest (output projection, norm, feed forward, norm) is split by blocks of
// tokens, which run through all of it without leaving a core's L2. A team meets after each step.
//
// Removed blocks leave a norm, and layers without attention nothing to meet for: a block of tokens runs through all of
// them, up to the next attention.
//
// With CLS pooling the last attention's queries and all that follows matter for first tokens alone: they are gathered
// into rows of their own and nothing else is computed.
//
// A team with only a few tokens splits every linear by outputs instead (few_tokens.cpp): there, reading the weights is
// the cost, and each weight is then read by one thread.
#pragma once

#include "context.h"
#include "model.h"
#include "team.h"

namespace approxrt {

class GroupPass {
  public:
    // Sequences group.begin .. group.end-1 of the batch.
    GroupPass(const EncoderModel& model, const KernelTable& kernels, const Tuning& tuning, const Batch& batch,
              Group group, Team team, Context& context, GroupScratch& scratch);

    // Grows what a group of that many tokens and sequences needs, so that nothing is allocated (and nothing can throw)
    // inside a parallel region.
    static void reserve(const EncoderModel& model, const KernelTable& kernels, const Tuning& tuning, int team,
                        int32_t tokens, int32_t sequences, int32_t longest, GroupScratch& group,
                        std::vector<ThreadScratch>& threads);

    // `out` has rows of `ld` floats: one a token (kHidden) or one a sequence (else: the pooled state).
    void run(Output what, float* out, int64_t ld);

  private:
    using In = Linear::In;

    OpTimes* account(int thread) const { return c_.ops.empty() ? nullptr : &c_.ops[thread]; }
    int32_t length(int32_t i) const { return batch_.cu_seqlens[i + 1] - batch_.cu_seqlens[i]; }
    int32_t offset(int32_t i) const { return batch_.cu_seqlens[i] - batch_.cu_seqlens[group_.begin]; }
    int64_t heads_width(const TransformerLayer& layer) const {
        return round_up(static_cast<int64_t>(layer.num_heads) * layer.head_dim, kTileN);
    }

    // The parts of a step, shared by both ways of splitting it.
    void embed(int32_t begin, int32_t rows, float* out, ThreadScratch& scratch, OpTimes* account);
    void norm(const Norm& norm, const float* in, int32_t rows, float* out, OpTimes* account);
    // The norm of rows and the same rows quantised, a panel at a time: they are quantised out of L1.
    void norm_quantize(const Norm& norm, const float* in, int32_t rows, float* out, QuantizedRows& to, Forms forms,
                       int32_t first, OpTimes* account);
    // For the linears that read x in these forms; nothing when there are none.
    void quantize(QuantizedRows& to, Forms forms, int32_t first, const float* x, int64_t ldx, int32_t rows, int32_t k,
                  OpTimes* account);
    void linear(Op op, const Linear& w, const In& in, const Linear::Out& out, OpTimes* account);
    void linear(Op op, const Linear& w, const In& in, const Linear::Out& out, int32_t strip_begin, int32_t strip_end,
                OpTimes* account);
    void attend(const TransformerLayer& layer, int32_t head_begin, int32_t head_end, const In& in, const In& queries,
                bool first_only, float* attended, ThreadScratch& scratch, OpTimes* account);
    const uint64_t* always_kept(int32_t i, Scratch& scratch) const;
    // up <- act(gate) * up, of `width` columns.
    void multiply_gate(const float* gate, float* up, int64_t ld, int32_t rows, int32_t width, OpTimes* account);
    void gather_first(const float* x, float* first) const;
    static int32_t heads_together(const TransformerLayer& layer);

    void encode(bool first_only);
    void attention_step(const TransformerLayer& layer, bool first_only);
    template <class Body>
    void token_step(int32_t count, const Body& body);
    void through(int32_t from, int32_t to, int32_t begin, int32_t rows, float* x, int thread);
    int32_t block_rows(int32_t rows) const;

    bool few_tokens() const;
    void encode_by_outputs(bool first_only);

    void pool(float* out, int64_t ld);

    const EncoderModel& m_;
    const KernelTable& k_;
    const Tuning& tuning_;
    const Batch& batch_;
    const Group group_;
    Team team_;
    Context& c_;
    GroupScratch& g_;
    const int32_t tokens_, sequences_;
    const int64_t hidden_;  // row stride of hidden states
};

}  // namespace approxrt
