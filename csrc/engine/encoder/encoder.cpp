// The forward pass: the batch divided into groups of sequences, the layers over each (group_pass.cpp), the head.
#include "encoder.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "group_pass.h"

namespace approxrt {
namespace {

// Rows that the head takes at a time.
constexpr int32_t kHeadRows = 32;

}  // namespace

void Encoder::run(const Batch& batch, Output what, float* out, Context& c) const {
    const EncoderModel& m = model_;
    const int threads = passes_.pool().threads();
    make_plan(batch.cu_seqlens, batch.sequences, threads, tuning_, c.plan);
    int32_t* positions = c.positions.get<int32_t>(batch.tokens());
    int32_t longest = 0, most_tokens = 0, most_sequences = 0;
    for (int32_t i = 0; i < batch.sequences; ++i) {
        const int32_t begin = batch.cu_seqlens[i], n = batch.cu_seqlens[i + 1] - begin;
        longest = std::max(longest, n);
        for (int32_t t = 0; t < n; ++t) positions[begin + t] = m.turns() ? 0 : t;
    }
    for (const Group& group : c.plan.groups) {
        most_tokens = std::max(most_tokens, batch.cu_seqlens[group.end] - batch.cu_seqlens[group.begin]);
        most_sequences = std::max(most_sequences, group.end - group.begin);
    }
    for (int i = 0; i < (c.plan.apart ? threads : 1); ++i)
        GroupPass::reserve(m, kernels_, tuning_, c.plan.apart ? 1 : threads, most_tokens, most_sequences, longest,
                           c.groups[i], c.threads);

    const bool logits = what == Output::kLogits;
    const Output states = this->states(what);
    const bool projected = what == Output::kPooled && !m.head.projections.empty();
    const int64_t width = what == Output::kPooled ? m.head.pooled_width(m.hidden) : m.hidden;
    const int64_t ld = logits || projected ? round_up(width, kTileN) : width;
    const int32_t count = states == Output::kHidden ? batch.tokens() : batch.sequences;
    float* rows = logits || projected ? c.pooled.get<float>(count * ld) : out;
    const auto run_group = [&](const Group& group, Team team, GroupScratch& scratch) {
        const int64_t row = states == Output::kHidden ? batch.cu_seqlens[group.begin] : group.begin;
        GroupPass(m, kernels_, tuning_, batch, group, team, c, scratch).run(states, rows + row * ld, ld);
    };
    if (c.plan.apart) {
        passes_.pool().run(static_cast<int>(c.plan.groups.size()), [&](int task, int thread) {
            run_group(c.plan.groups[task], Team(thread), c.groups[thread]);
        });
    } else {
        run_group(c.plan.groups[0], Team(passes_.pool()), c.groups[0]);
    }
    if (logits) run_head(rows, count, out, c);
    if (projected) project(rows, ld, batch.sequences, out, c);
}

void Encoder::project(float* pooled, int64_t ld, int32_t sequences, float* out, Context& c) const {
    const std::vector<Projection>& projections = model_.head.projections;
    const int32_t block = std::min(sequences, kHeadRows), n = projections.back().linear.n();
    int64_t widest = 0;
    for (const Projection& p : projections) widest = std::max<int64_t>(widest, p.linear.n_padded());
    for (ThreadScratch& s : c.threads) {
        s.wide.get<float>(block * widest);
        s.narrow.get<float>(block * widest);
    }
    passes_.pool().run((sequences + block - 1) / block, [&](int task, int thread) {
        ThreadScratch& s = c.threads[thread];
        const int32_t begin = task * block, rows = std::min(block, sequences - begin);
        float *x = pooled + begin * ld, *y = s.wide.get<float>(0), *next = s.narrow.get<float>(0);
        int64_t ldx = ld;
        for (const Projection& p : projections) {
            const Timed timed(c.ops.empty() ? nullptr : &c.ops[thread], Op::kHead, p.linear.macs() * rows);
            if (p.normalize) normalize_rows(x, ldx, rows, p.linear.k());
            p.linear.run(kernels_, {x, ldx, rows, nullptr}, {y, p.linear.n_padded(), nullptr, 0, p.act});
            x = y;
            ldx = p.linear.n_padded();
            std::swap(y, next);
        }
        for (int32_t i = 0; i < rows; ++i)
            std::memcpy(out + (begin + i) * static_cast<int64_t>(n), x + i * ldx, sizeof(float) * n);
    });
}

void Encoder::run_head(const float* states, int32_t count, float* out, Context& c) const {
    const Head& head = model_.head;
    const int32_t block = std::min(count, kHeadRows), n = head.out->n();
    const int64_t ld = round_up(model_.hidden, kTileN), wide = head.dense ? head.dense->n_padded() : 0;
    for (ThreadScratch& s : c.threads) {
        s.quantized.reserve(kernels_, model_.forms, block, std::max<int64_t>(model_.hidden, wide));
        s.wide.get<float>(block * wide);
        s.narrow.get<float>(block * head.out->n_padded());
    }
    passes_.pool().run((count + block - 1) / block, [&](int task, int thread) {
        ThreadScratch& s = c.threads[thread];
        const int32_t begin = task * block, rows = std::min(block, count - begin);
        const auto linear = [&](const Linear& w, const float* x, int64_t ldx, float* y, Act act) {
            const Timed timed(c.ops.empty() ? nullptr : &c.ops[thread], Op::kHead, w.macs() * rows);
            if (!w.is_f32()) s.quantized.fill(kernels_, {&w}, 0, x, ldx, rows, w.k());
            w.run(kernels_, {x, ldx, rows, &s.quantized}, {y, w.n_padded(), nullptr, 0, act});
        };
        const float* x = states + begin * ld;
        int64_t ldx = ld;
        if (head.dense) {
            linear(*head.dense, x, ldx, s.wide.get<float>(0), head.dense_act);
            x = s.wide.get<float>(0);
            ldx = wide;
        }
        float* y = s.narrow.get<float>(0);
        linear(*head.out, x, ldx, y, Act::kIdentity);
        for (int32_t i = 0; i < rows; ++i)
            std::memcpy(out + (begin + i) * static_cast<int64_t>(n), y + i * head.out->n_padded(), sizeof(float) * n);
    });
}

Encoder::Encoder(EncoderModel model, const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, const Tuning& tuning)
    : model_(std::move(model)), kernels_(kernels), tuning_(tuning), passes_(std::move(pool)) {
    model_.forms = forms_of(model_);
}

void Encoder::check(const Batch& batch) const {
    const auto fail = [](const std::string& message) { throw std::invalid_argument(message); };
    const Embeddings& e = model_.embeddings;
    const int32_t vocab = model_.words.vocab;
    if (batch.sequences < 1) fail("the batch is empty: give at least one sequence of token ids");
    if (batch.cu_seqlens[0] != 0) fail("cu_seqlens must start with 0");
    for (int32_t i = 0; i < batch.sequences; ++i) {
        const int32_t begin = batch.cu_seqlens[i], n = batch.cu_seqlens[i + 1] - begin;
        if (n < 1) fail("sequence " + std::to_string(i) + " is empty: give at least one token id");
        if (n > e.max_positions)
            fail("sequence " + std::to_string(i) + " has " + std::to_string(n) +
                 " tokens, the model has positions for " + std::to_string(e.max_positions) + ": cut it");
        for (int32_t t = begin; t < begin + n; ++t) {
            if (batch.ids[t] < 0 || batch.ids[t] >= vocab)
                fail("sequence " + std::to_string(i) + ", token " + std::to_string(t - begin) + ": id " +
                     std::to_string(batch.ids[t]) + " is outside the vocabulary (0 to " + std::to_string(vocab - 1) +
                     ")");
            const int32_t types = e.types > 0 ? e.types : 1;
            if (batch.types && (batch.types[t] < 0 || batch.types[t] >= types))
                fail("sequence " + std::to_string(i) + ", token " + std::to_string(t - begin) + ": token type " +
                     std::to_string(batch.types[t]) + " is outside 0 to " + std::to_string(types - 1));
        }
    }
}

int64_t Encoder::output_rows(const Batch& batch, Output what) const {
    return states(what) == Output::kHidden ? batch.tokens() : batch.sequences;
}

int32_t Encoder::output_columns(Output what) const {
    const Head& head = model_.head;
    if (what == Output::kPooled)
        return head.projections.empty() ? head.pooled_width(model_.hidden) : head.projections.back().linear.n();
    if (what == Output::kHidden) return model_.hidden;
    if (!model_.head.out) throw std::invalid_argument("the model has no classification head: ask for pooled or hidden");
    return model_.head.out->n();
}

void Encoder::forward(const Batch& batch, Output what, float* out) const {
    passes_.run([&](Context& context) { run(batch, what, out, context); });
}

}  // namespace approxrt
