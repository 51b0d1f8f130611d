// What both ways of a step share.
#include "pass.h"

#include <algorithm>
#include <cmath>

namespace approxrt {

namespace {

// Tokens of a prompt that an attention task takes: enough rows for the kernel's blocks, few enough to share out.
constexpr int32_t kChunkTokens = 32;

}  // namespace

DecoderPass::DecoderPass(const DecoderModel& model, const KernelTable& kernels, Forms forms, ThreadPool& pool,
                         int32_t block_tokens, const Step& step, DecoderContext& context)
    : m_(model),
      k_(kernels),
      forms_(forms),
      pool_(pool),
      block_tokens_(block_tokens),
      step_(step),
      c_(context),
      hidden_(round_up(model.hidden, kTileN)) {
    for (const TransformerLayer& l : m_.layers) {
        if (l.num_heads) {
            query_ld_ = std::max(query_ld_, l.query.n_padded());
            kv_ld_ = std::max(kv_ld_, l.key.n_padded());
        }
        if (l.intermediate) wide_ = std::max(wide_, l.up.n_padded());
    }
}

void DecoderPass::run() {
    reserve();
    place_tokens();
    divide(few() ? kGemvTokens : kChunkTokens);
    if (few()) return run_few();
    run_blocks();
    step_.hidden ? hidden() : head();
}

// Nothing is allocated, and nothing can throw, inside a parallel region.
void DecoderPass::reserve() {
    const int64_t tokens = step_.tokens, half = static_cast<int64_t>(m_.frequencies.size());
    const auto rows = static_cast<int32_t>(
        few() ? tokens : std::min<int64_t>(round_up(tokens, k_.layout.mr), round_up(block_tokens_, k_.layout.mr)));
    int64_t longest = 0, attention = 0;
    for (int32_t i = 0; i < step_.count; ++i)
        longest = std::max(longest, step_.runs[i].cache->length() + step_.runs[i].count);
    for (const TransformerLayer& l : m_.layers)
        if (l.num_heads)
            attention = std::max({attention, cached_attention_scratch_floats(longest, l.head_dim),
                                  l.keep ? sign_cached_scratch_floats(longest, l.head_dim) : 0});
    const int64_t inputs = std::max(
        {static_cast<int64_t>(m_.hidden), query_ld_, wide_, m_.preview ? m_.preview->project.n_padded() : int64_t{0}});
    c_.positions.get<int32_t>(tokens);
    c_.rows.get<int32_t>(tokens);
    c_.cos.get<float>(tokens * half);
    c_.sin.get<float>(tokens * half);
    c_.x.get<float>(tokens * hidden_);
    c_.query.get<float>(tokens * query_ld_);
    c_.attended.get<float>(tokens * query_ld_);
    if (few()) {
        c_.shared.get<float>(tokens * 2 * wide_);
        plan_few();
    }
    const int32_t logits = step_.logit_rows();
    c_.last.get<float>(logits * hidden_);
    if (logits > kGemvTokens) c_.last_quantized.reserve(k_, forms_, kHeadRows, m_.hidden);
    if (m_.preview) reserve_preview();
    for (DecoderThread& t : c_.threads) {
        t.narrow.get<float>(std::max<int64_t>(rows, kGemvTokens) * hidden_);
        t.keys.get<float>(rows * kv_ld_);
        t.values.get<float>(rows * kv_ld_);
        t.attention.get<float>(attention);
        t.few.reserve(k_, forms_, kGemvTokens, inputs);
        t.wide.get<float>(rows * wide_);
        if (few()) continue;
        t.quantized.reserve(k_, forms_, rows, inputs);
        t.gate.get<float>(rows * gate_ld());
    }
}

void DecoderPass::place_tokens() {
    int32_t* positions = c_.positions.get<int32_t>(0);
    int32_t* rows = c_.rows.get<int32_t>(0);
    for (int32_t i = 0; i < step_.count; ++i) {
        const SequenceRun& run = step_.runs[i];
        for (int32_t t = 0; t < run.count; ++t) {
            positions[run.begin + t] = static_cast<int32_t>(run.cache->length()) + t;
            rows[run.begin + t] = m_.learned ? positions[run.begin + t] : 0;
        }
    }
}

// Chunks of at most `most` tokens; the last ones of a run, which see the most keys, come first.
void DecoderPass::divide(int32_t most) {
    c_.chunks.clear();
    for (int32_t i = 0; i < step_.count; ++i) {
        const SequenceRun& run = step_.runs[i];
        for (int32_t begin = (run.count - 1) / most * most; begin >= 0; begin -= most)
            c_.chunks.push_back({i, begin, std::min(most, run.count - begin)});
    }
}

// -- parts ---------------------------------------------------------------------

void DecoderPass::embed(int32_t begin, int32_t rows, OpTimes* account) {
    const Timed timed(account, Op::kEmbedding);
    EmbeddingArgs a = m_.words.args();
    a.position = m_.position;
    a.ids = step_.ids + begin;
    a.positions = c_.rows.get<int32_t>(0) + begin;
    a.rows = rows;
    a.out = c_.x.get<float>(0) + begin * hidden_;
    a.ldo = hidden_;
    k_.embedding(a);
    // Angles as transformers has them: a float32 product, then sine and cosine.
    const auto half = static_cast<int64_t>(m_.frequencies.size());
    const int32_t* positions = c_.positions.get<int32_t>(0);
    for (int64_t t = begin; t < begin + rows; ++t)
        for (int64_t i = 0; i < half; ++i) {
            const float angle = static_cast<float>(positions[t]) * m_.frequencies[i];
            c_.cos.get<float>(0)[t * half + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
            c_.sin.get<float>(0)[t * half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
        }
}

void DecoderPass::norm(const Norm& norm, const float* x, int32_t rows, float* y, OpTimes* account) const {
    const Timed timed(account, Op::kNorm);
    norm.run(k_, m_.eps, x, hidden_, rows, y, hidden_);
}

void DecoderPass::rope(float* x, int64_t ldx, int32_t begin, int32_t rows, int32_t heads, int32_t dim) const {
    const auto half = static_cast<int64_t>(m_.frequencies.size());
    if (half == 0) return;
    k_.rope({.x = x,
             .ldx = ldx,
             .rows = rows,
             .heads = heads,
             .head_dim = dim,
             .cos = c_.cos.data<float>() + begin * half,
             .sin = c_.sin.data<float>() + begin * half});
}

void DecoderPass::write(int32_t layer, const float* keys, const float* values, int64_t ld, int32_t begin, int32_t rows,
                        int32_t head, int32_t heads) const {
    const int64_t dim = m_.layers[layer].head_dim;
    for (int32_t i = 0; i < step_.count; ++i) {
        const SequenceRun& run = step_.runs[i];
        const int32_t from = std::max(begin, run.begin), to = std::min(begin + rows, run.begin + run.count);
        if (from >= to) continue;
        const int64_t offset = (from - begin) * ld;
        const auto position = static_cast<int32_t>(run.cache->length()) + from - run.begin;
        for (int32_t h = 0; h < heads; ++h)
            k_.cache_write({.keys = keys ? keys + offset + h * dim : nullptr,
                            .values = values ? values + offset + h * dim : nullptr,
                            .ld = ld,
                            .rows = to - from,
                            .position = position,
                            .to = run.cache->head(layer, head + h)});
    }
}

void DecoderPass::index(int32_t layer, int32_t run, int32_t kv_head, int thread) {
    const SequenceRun& r = step_.runs[run];
    const Timed timed(account(thread), Op::kCache);
    const auto begin = static_cast<int32_t>(r.cache->length());
    k_.sign_index({.cache = r.cache->head(layer, kv_head),
                   .sign = r.cache->sign_head(layer, kv_head),
                   .begin = begin,
                   .end = begin + r.count});
}

void DecoderPass::attend(int32_t layer, const Chunk& chunk, int32_t kv_head, int thread) {
    const TransformerLayer& l = m_.layers[layer];
    const SequenceRun& run = step_.runs[chunk.run];
    CachedAttentionArgs a{};
    a.ldq = a.ldo = query_ld_;
    const int64_t at = (run.begin + chunk.begin) * query_ld_ + static_cast<int64_t>(kv_head) * l.group() * l.head_dim;
    a.q = c_.query.get<float>(0) + at;
    a.out = c_.attended.get<float>(0) + at;
    a.tokens = chunk.count;
    a.heads = l.group();
    a.position = static_cast<int32_t>(run.cache->length()) + chunk.begin;
    a.cache = run.cache->head(layer, kv_head);
    a.scale = 1.0f / std::sqrt(static_cast<float>(l.head_dim));
    a.scratch = c_.threads[thread].attention.get<float>(0);
    OpTimes* account = this->account(thread);
    const int64_t keys = a.position + (a.tokens + 1) / 2;
    const Timed timed(account, Op::kAttention, 2ll * a.tokens * a.heads * keys * l.head_dim);
    // Tokens that see fewer than sign_from keys come first.
    const int32_t dense = l.keep ? std::clamp(l.sign_from - 1 - a.position, 0, a.tokens) : a.tokens;
    CachedAttentionArgs matched = a;
    a.tokens = dense;
    if (dense) k_.cached_attention(a);
    matched.tokens -= dense;
    if (!matched.tokens) return;
    matched.q += dense * a.ldq;
    matched.out += dense * a.ldo;
    matched.position += dense;
    k_.sign_cached_attention({.a = matched,
                              .sign = run.cache->sign_head(layer, kv_head),
                              .keep = l.keep,
                              .window = l.window,
                              .kept = nullptr});
}

}  // namespace approxrt
