// One step of a decoder, by all threads of a pool, in one of two ways.
//
// A prompt (blocks.cpp): blocks of tokens run from one attention to the next without leaving a core: output
// projection, feed forward, then norm, query, key and value of the next layer, whose keys and values go to the cache.
// Attention itself, which needs all of a sequence's keys, is split by key-value heads and chunks of tokens. Threads
// meet twice a layer.
//
// A few tokens (few.cpp): reading the weights is the cost, so every linear is split by outputs and each weight
// is read by one thread, once.
#pragma once

#include "engine/common/part.h"
#include "decoder.h"

namespace approxrt {

// Rows that the head takes at a time.
constexpr int32_t kHeadRows = 96;

class DecoderPass {
  public:
    DecoderPass(const DecoderModel& model, const KernelTable& kernels, Forms forms, ThreadPool& pool,
                int32_t block_tokens, const Step& step, DecoderContext& context);
    void run();

  private:
    OpTimes* account(int thread) const { return c_.ops.empty() ? nullptr : &c_.ops[thread]; }
    bool few() const { return step_.tokens <= kGemvTokens && !step_.hidden; }

    void reserve();
    void place_tokens();
    void divide(int32_t most);
    void embed(int32_t begin, int32_t rows, OpTimes* account);
    void norm(const Norm& norm, const float* x, int32_t rows, float* y, OpTimes* account) const;
    void rope(float* x, int64_t ldx, int32_t begin, int32_t rows, int32_t heads, int32_t dim) const;
    // The Hadamard transform before `down`, if there is one.
    void spread(const float* x, float* y, int32_t rows, int32_t width) const {
        if (m_.down_block)
            k_.hadamard(
                {.x = x, .ldx = wide_, .y = y, .ldy = wide_, .rows = rows, .width = width, .size = m_.down_block});
    }
    // Rows begin .. of the step's tokens; `ld` is theirs, column 0 that of the first of `heads` heads from `head` on.
    void write(int32_t layer, const float* keys, const float* values, int64_t ld, int32_t begin, int32_t rows,
               int32_t head, int32_t heads) const;
    // Signs and sums of a run's new keys, once all of them are in the cache.
    void index(int32_t layer, int32_t run, int32_t kv_head, int thread);
    void attend(int32_t layer, const Chunk& chunk, int32_t kv_head, int thread);

    // blocks.cpp
    void run_blocks();
    void attention_in(int32_t layer, int32_t begin, int32_t rows, int thread);
    void attention_out(int32_t layer, int32_t begin, int32_t rows, int thread);
    void feed_forward(int32_t layer, int32_t begin, int32_t rows, int thread);
    void linear(Op op, const Linear& w, const float* x, int64_t ldx, int32_t rows, const QuantizedRows& quantized,
                const Linear::Out& out, OpTimes* account) const;
    void linear(Op op, const Linear& w, const float* x, int64_t ldx, int32_t rows, const QuantizedRows& quantized,
                const Linear::Out& out, int32_t strip_begin, int32_t strip_end, OpTimes* account) const;
    static int64_t gate_ld();
    void norm_quantize(const Norm& norm, const float* x, int32_t rows, Forms forms, DecoderThread& s,
                       OpTimes* account) const;

    // few.cpp
    // A part's share of one of query (0), key (1) and value (2): heads `head` .. of it, and their strips.
    struct Projection {
        int which;
        const Linear* matrix;
        int32_t head, heads, strip_begin, strip_end;
    };
    void plan_few();
    void run_few();
    void few_stage(const FewStage& stage, int part, int parts, Ahead& ahead);
    void few_ahead(const FewStage& stage, int part, int parts, Ahead& ahead) const;
    template <class Body>
    void each_projection(int32_t layer, int part, int parts, const Body& body) const;
    void few_query_key_value(int32_t layer, int part, int parts, Ahead& ahead);
    void few_attend(int32_t layer, int part, int parts);
    void few_output(int32_t layer, int part, int parts, Ahead& ahead);
    void few_up(int32_t layer, int part, int parts, Ahead& ahead);
    void few_down(int32_t layer, int part, int parts, Ahead& ahead);
    void few_quantize(Forms forms, const float* x, int64_t ldx, int32_t rows, int32_t k, int part);
    void few_linear(Op op, const Linear& w, const float* x, int64_t ldx, int32_t rows, const FewRows& quantized,
                    const Linear::Out& out, int32_t strip_begin, int32_t strip_end, OpTimes* account) const;

    // The hidden state that row `i` of the logits is made of.
    const float* logit_row(int32_t i) const {
        const int32_t token = step_.logit_rows() == step_.tokens ? i : step_.runs[i].begin + step_.runs[i].count - 1;
        return c_.x.data<float>() + token * hidden_;
    }
    // head.cpp: x are rows that are normalised. Of a few rows each part of the threads takes a share.
    void head();
    void logits(const float* x, int32_t begin, int32_t rows);
    void few_head(int part, int parts);
    void few_logits(const float* x, int32_t rows, int part, int parts);
    void hidden();

    // preview.cpp: the same where the head is previewed, from one meeting of the threads to the next.
    void reserve_preview();
    void preview_logits(const float* x, int32_t begin, int32_t rows);
    void few_project(int part, int parts);
    void few_project(const float* x, int32_t rows, int part, int parts);
    void few_preview(int32_t rows, int part, int parts);
    void few_shortlist(int32_t rows, int part, int parts);
    void few_refine(const float* x, int32_t rows, int part, int parts);
    void refine(const GroupRows& tokens, int32_t token, const int32_t* ids, int32_t count, float* logits) const;

    const DecoderModel& m_;
    const KernelTable& k_;
    const Forms forms_;
    ThreadPool& pool_;
    const int32_t block_tokens_;
    const Step& step_;
    DecoderContext& c_;
    const int64_t hidden_;  // row stride of x
    int64_t query_ld_ = 0, kv_ld_ = 0, wide_ = 0;
};

}  // namespace approxrt
