// The forward pass.
//
// Work is split by blocks of tokens, not by outputs: a block runs through output projection, norm, feed
// forward, norm and the next layer's query, key and value without leaving a core's L2, and threads meet
// only before and after attention, where tokens of a sequence need each other.
//
// With CLS pooling the last layer's queries, projection and feed forward matter for first tokens alone:
// they are gathered into rows of their own and nothing else is computed.
#include "encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

namespace approxrt {
namespace {

// Enough tokens that streaming a layer's weights once a block costs little, few enough that a block's
// activations stay near a core's L2. Not tuned: one noisy run each of 24, 48, 96 and 192 showed no clear winner.
constexpr int32_t kBlockTokens = 96;
// Threads that have at most this many tokens take them in one piece.
constexpr int32_t kWholeTokens = 96;
// Longer sequences are split among tasks by queries; each task transposes the keys anew.
constexpr int32_t kQueryChunk = 192;

int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

}  // namespace

// One call's state: the batch, its context and the shape of the work.
struct Encoder::Pass {
    const Encoder& encoder;
    const EncoderModel& m;
    const KernelTable& k;
    ThreadPool& pool;
    const Batch& batch;
    Context& c;
    int32_t tokens, sequences;
    int64_t h_padded;  // row stride of hidden states
    int64_t a_padded;  // row stride of one of query, key, value
    float* x;
    float* qkv;
    float* attended;

    Pass(const Encoder& e, const Batch& b, Context& context)
        : encoder(e),
          m(e.model_),
          k(e.kernels_),
          pool(*e.pool_),
          batch(b),
          c(context),
          tokens(b.tokens()),
          sequences(b.sequences),
          h_padded(round_up(m.hidden, kTileN)),
          a_padded(0) {
        for (const EncoderLayer& layer : m.layers)
            a_padded = std::max(a_padded, round_up(layer.num_heads * layer.head_dim, kTileN));
        x = c.x.get<float>(tokens * h_padded);
        qkv = c.qkv.get<float>(tokens * a_padded * 3);
        attended = c.attended.get<float>(tokens * a_padded);
        reserve();
    }

    // Grows the threads' scratch to what any block needs, so that nothing is allocated (and nothing can
    // throw) inside a parallel region.
    void reserve() {
        const int32_t rows = std::max(block_rows(tokens), block_rows(sequences));
        int64_t inputs = m.hidden, wide = 0, narrow = std::max<int64_t>(h_padded, round_up(m.embeddings.width, kTileN));
        inputs = std::max<int64_t>(inputs, m.embeddings.width);
        for (const EncoderLayer& layer : m.layers) {
            inputs = std::max<int64_t>({inputs, layer.output.k(), layer.down.k()});
            wide = std::max(wide, layer.up.n_padded());
        }
        for (ThreadScratch& t : c.threads) {
            t.panels.get<char>(k.layout.bytes(rows, inputs));
            t.scales.get<float>(rows);
            t.wide.get<float>(rows * wide);
            t.narrow.get<float>(rows * narrow);
        }
    }

    int32_t block_rows(int32_t rows) const {
        const int32_t share = ceil_div(rows, pool.threads());
        if (share <= kWholeTokens) return share;
        const int32_t count = pool.threads() * ceil_div(share, kBlockTokens);
        return static_cast<int32_t>(round_up(ceil_div(rows, count), k.layout.mr));
    }

    // Runs body(first row, rows, scratch) over blocks of rows.
    template <class Body>
    void blocks(int32_t rows, const Body& body) {
        const int32_t block = block_rows(rows);
        pool.run(ceil_div(rows, block), [&](int task, int thread) {
            const int32_t begin = task * block;
            body(begin, std::min(block, rows - begin), c.threads[thread]);
        });
    }

    void norm(const Norm& norm, const float* in, int64_t ld_in, int32_t rows, int32_t width, float* out, int64_t ld) {
        k.layer_norm({in, ld_in, rows, width, norm.gamma.data(), norm.beta.data(), m.eps, out, ld});
    }

    void linear(const Linear& w, const Linear::Rows& rows, ThreadScratch& scratch) {
        if (w.is_int8()) quantize(k, rows.x, rows.ldx, rows.rows, w.k(), scratch);
        w.run(k, rows, scratch);
    }

    void embed(int32_t begin, int32_t rows, ThreadScratch& scratch) {
        const Embeddings& e = m.embeddings;
        const int32_t* positions = c.positions.get<int32_t>(0);
        float* out = x + begin * h_padded;
        int64_t ld = h_padded;
        const bool project = e.projection.has_value();
        if (project) {
            ld = round_up(e.width, kTileN);
            out = scratch.narrow.get<float>(std::max(ld, h_padded) * rows);
        }
        k.embedding({e.word, e.word_q, e.word_scale, e.position, e.token_type, batch.ids + begin, positions + begin,
                     batch.types ? batch.types + begin : nullptr, rows, e.width, out, ld});
        norm(e.norm, out, ld, rows, e.width, out, ld);
        if (project) linear(*e.projection, {out, ld, rows, x + begin * h_padded, h_padded}, scratch);
    }

    // Query, key and value of rows of x. `with_query` is false when only first tokens will ask.
    void project_qkv(const EncoderLayer& layer, int32_t begin, int32_t rows, bool with_query, ThreadScratch& scratch) {
        const float* in = x + begin * h_padded;
        float* out = qkv + begin * a_padded * 3;
        const Linear* parts[3] = {&layer.query, &layer.key, &layer.value};
        bool quantized = false;
        for (int part = with_query ? 0 : 1; part < 3; ++part) {
            if (parts[part]->is_int8() && !quantized) {
                quantize(k, in, h_padded, rows, m.hidden, scratch);
                quantized = true;
            }
            parts[part]->run(k, {in, h_padded, rows, out + part * a_padded, a_padded * 3}, scratch);
        }
    }

    // Attention of all tokens (queries in qkv) or of first tokens (queries in first_q).
    void attend(const EncoderLayer& layer, const float* first_q) {
        const int32_t heads = layer.num_heads;
        // tasks[i]: first task of sequence i; a sequence has heads x chunks tasks.
        int32_t* tasks = c.tasks.get<int32_t>(sequences + 1);
        const int64_t longest = longest_sequence();
        for (ThreadScratch& t : c.threads) t.attention.get<float>(attention_scratch_floats(longest, layer.head_dim));
        tasks[0] = 0;
        for (int32_t i = 0; i < sequences; ++i)
            tasks[i + 1] = tasks[i] + heads * (first_q ? 1 : ceil_div(length(i), kQueryChunk));
        pool.run(tasks[sequences], [&](int task, int thread) {
            int32_t low = 0, high = sequences;  // the sequence whose range holds the task
            while (high - low > 1) {
                const int32_t mid = (low + high) / 2;
                (tasks[mid] <= task ? low : high) = mid;
            }
            const int32_t n = length(low), chunks = (tasks[low + 1] - tasks[low]) / heads;
            const int32_t head = (task - tasks[low]) / chunks, chunk = (task - tasks[low]) % chunks;
            const int64_t column = static_cast<int64_t>(head) * layer.head_dim;
            const float* base = qkv + batch.cu_seqlens[low] * a_padded * 3 + column;
            AttentionArgs a{};
            a.k = base + a_padded;
            a.v = base + 2 * a_padded;
            a.ld = a_padded * 3;
            a.n = n;
            a.head_dim = layer.head_dim;
            a.scale = 1.0f / std::sqrt(static_cast<float>(layer.head_dim));
            a.ldo = a_padded;
            a.scratch = c.threads[thread].attention.get<float>(0);
            if (first_q) {
                a.q = first_q + low * a_padded + column;
                a.ldq = a_padded;
                a.query_begin = 0;
                a.query_end = 1;
                a.out = attended + low * a_padded + column;
            } else {
                a.q = base;
                a.ldq = a.ld;
                a.query_begin = chunk * kQueryChunk;
                a.query_end = std::min(n, a.query_begin + kQueryChunk);
                a.out = attended + batch.cu_seqlens[low] * a_padded + column;
            }
            k.attention(a);
        });
    }

    // Output projection, norm, feed forward, norm: rows of `attended` and of the residual `xs`, in place.
    void finish_layer(const EncoderLayer& layer, float* xs, int32_t begin, int32_t rows, ThreadScratch& scratch) {
        float* residual = xs + begin * h_padded;
        float* y = scratch.narrow.get<float>(rows * h_padded);
        linear(layer.output, {attended + begin * a_padded, a_padded, rows, y, h_padded, residual, h_padded}, scratch);
        norm(layer.attention_norm, y, h_padded, rows, m.hidden, residual, h_padded);
        const int64_t wide = layer.up.n_padded();
        float* inner = scratch.wide.get<float>(rows * wide);
        linear(layer.up, {residual, h_padded, rows, inner, wide, nullptr, 0, m.activation}, scratch);
        linear(layer.down, {inner, wide, rows, y, h_padded, residual, h_padded}, scratch);
        norm(layer.ffn_norm, y, h_padded, rows, m.hidden, residual, h_padded);
    }

    int32_t length(int32_t i) const { return batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]; }
    int32_t longest_sequence() const {
        int32_t longest = 0;
        for (int32_t i = 0; i < sequences; ++i) longest = std::max(longest, length(i));
        return longest;
    }

    // The last hidden states of all tokens end in x; with `first_only`, those of first tokens in the
    // returned rows [sequences, h_padded].
    const float* encode(bool first_only) {
        int32_t* positions = c.positions.get<int32_t>(tokens);
        for (int32_t i = 0; i < sequences; ++i)
            for (int32_t t = 0; t < length(i); ++t) positions[batch.cu_seqlens[i] + t] = t;
        const int32_t count = static_cast<int32_t>(m.layers.size());
        const auto is_last = [&](int32_t i) { return first_only && i == count - 1; };

        blocks(tokens, [&](int32_t begin, int32_t rows, ThreadScratch& scratch) {
            embed(begin, rows, scratch);
            if (count) project_qkv(m.layers[0], begin, rows, !is_last(0), scratch);
        });
        for (int32_t i = 0; i < count; ++i) {
            const EncoderLayer& layer = m.layers[i];
            if (is_last(i)) return finish_first_tokens(layer);
            attend(layer, nullptr);
            blocks(tokens, [&](int32_t begin, int32_t rows, ThreadScratch& scratch) {
                finish_layer(layer, x, begin, rows, scratch);
                if (i + 1 < count) project_qkv(m.layers[i + 1], begin, rows, !is_last(i + 1), scratch);
            });
        }
        return first_only ? gather_first_tokens() : nullptr;
    }

    float* gather_first_tokens() {
        float* first = c.first_x.get<float>(sequences * h_padded);
        for (int32_t i = 0; i < sequences; ++i)
            std::memcpy(first + i * h_padded, x + batch.cu_seqlens[i] * h_padded, sizeof(float) * h_padded);
        return first;
    }

    const float* finish_first_tokens(const EncoderLayer& layer) {
        float* first = gather_first_tokens();
        float* q = c.first_q.get<float>(sequences * a_padded);
        blocks(sequences, [&](int32_t begin, int32_t rows, ThreadScratch& scratch) {
            linear(layer.query, {first + begin * h_padded, h_padded, rows, q + begin * a_padded, a_padded}, scratch);
        });
        attend(layer, q);
        blocks(sequences, [&](int32_t begin, int32_t rows, ThreadScratch& scratch) {
            finish_layer(layer, first, begin, rows, scratch);
        });
        return first;
    }

    const float* mean_pool() {
        float* pooled = c.pooled.get<float>(sequences * h_padded);
        pool.run(sequences, [&](int i, int) {
            float* out = pooled + i * h_padded;
            std::memset(out, 0, sizeof(float) * h_padded);
            for (int32_t t = batch.cu_seqlens[i]; t < batch.cu_seqlens[i + 1]; ++t)
                for (int32_t j = 0; j < m.hidden; ++j) out[j] += x[t * h_padded + j];
            const float inv = 1.0f / static_cast<float>(length(i));
            for (int32_t j = 0; j < m.hidden; ++j) out[j] *= inv;
        });
        return pooled;
    }

    static void copy_rows(const float* in, int64_t ld, int64_t rows, int32_t width, float* out) {
        for (int64_t i = 0; i < rows; ++i) std::memcpy(out + i * width, in + i * ld, sizeof(float) * width);
    }

    void run(Output what, float* out) {
        const bool first_only = what != Output::kHidden && m.head.pooling == Pooling::kCls;
        const float* rows = encode(first_only);
        if (what == Output::kHidden) return copy_rows(x, h_padded, tokens, m.hidden, out);
        if (!first_only) rows = mean_pool();
        if (what == Output::kPooled) return copy_rows(rows, h_padded, sequences, m.hidden, out);
        int64_t ld = h_padded;
        ThreadScratch& scratch = c.threads[0];
        if (m.head.dense) {
            const int64_t wide = m.head.dense->n_padded();
            float* dense = c.dense.get<float>(sequences * wide);
            linear(*m.head.dense, {rows, ld, sequences, dense, wide, nullptr, 0, m.head.dense_act}, scratch);
            rows = dense;
            ld = wide;
        }
        const int64_t padded = m.head.out->n_padded();
        float* logits = scratch.narrow.get<float>(sequences * padded);
        linear(*m.head.out, {rows, ld, sequences, logits, padded}, scratch);
        copy_rows(logits, padded, sequences, m.head.out->n(), out);
    }
};

Encoder::Encoder(EncoderModel model, const KernelTable& kernels, std::shared_ptr<ThreadPool> pool)
    : model_(std::move(model)), kernels_(kernels), pool_(std::move(pool)) {}

Encoder::~Encoder() {
    for (auto& slot : idle_) delete slot.load();
}

Context* Encoder::acquire() const {
    for (auto& slot : idle_)
        if (Context* context = slot.exchange(nullptr)) return context;
    auto context = std::make_unique<Context>();
    context->threads.resize(pool_->threads());
    return context.release();
}

void Encoder::release(Context* context) const {
    for (auto& slot : idle_) {
        Context* empty = nullptr;
        if (slot.compare_exchange_strong(empty, context)) return;
    }
    delete context;
}

void Encoder::check(const Batch& batch) const {
    const auto fail = [](const std::string& message) { throw std::invalid_argument(message); };
    const Embeddings& e = model_.embeddings;
    if (batch.sequences < 1) fail("the batch is empty: give at least one sequence of token ids");
    if (batch.cu_seqlens[0] != 0) fail("cu_seqlens must start with 0");
    for (int32_t i = 0; i < batch.sequences; ++i) {
        const int32_t begin = batch.cu_seqlens[i], n = batch.cu_seqlens[i + 1] - begin;
        if (n < 1) fail("sequence " + std::to_string(i) + " is empty: give at least one token id");
        if (n > e.max_positions)
            fail("sequence " + std::to_string(i) + " has " + std::to_string(n) +
                 " tokens, the model has positions for " + std::to_string(e.max_positions) + ": cut it");
        for (int32_t t = begin; t < begin + n; ++t) {
            if (batch.ids[t] < 0 || batch.ids[t] >= e.vocab)
                fail("sequence " + std::to_string(i) + ", token " + std::to_string(t - begin) + ": id " +
                     std::to_string(batch.ids[t]) + " is outside the vocabulary (0 to " + std::to_string(e.vocab - 1) +
                     ")");
            const int32_t types = e.types > 0 ? e.types : 1;
            if (batch.types && (batch.types[t] < 0 || batch.types[t] >= types))
                fail("sequence " + std::to_string(i) + ", token " + std::to_string(t - begin) + ": token type " +
                     std::to_string(batch.types[t]) + " is outside 0 to " + std::to_string(types - 1));
        }
    }
}

int64_t Encoder::output_rows(const Batch& batch, Output what) const {
    return what == Output::kHidden ? batch.tokens() : batch.sequences;
}

int32_t Encoder::output_columns(Output what) const {
    if (what != Output::kLogits) return model_.hidden;
    if (!model_.head.out) throw std::invalid_argument("the model has no classification head: ask for pooled or hidden");
    return model_.head.out->n();
}

void Encoder::forward(const Batch& batch, Output what, float* out) const {
    const ThreadPool::Caller turn(*pool_);
    struct Lease {
        const Encoder& encoder;
        Context* context;
        ~Lease() { encoder.release(context); }
    } lease{*this, acquire()};
    Pass(*this, batch, *lease.context).run(what, out);
}

size_t Encoder::weight_bytes() const {
    size_t sum = 0;
    for (const EncoderLayer& l : model_.layers)
        for (const Linear* w : {&l.query, &l.key, &l.value, &l.output, &l.up, &l.down}) sum += w->bytes();
    for (const auto* w : {&model_.embeddings.projection, &model_.head.dense, &model_.head.out})
        if (*w) sum += (*w)->bytes();
    return sum;
}

size_t Encoder::scratch_bytes() const {
    size_t sum = 0;
    for (auto& slot : idle_) {
        // Taken out while it is read, so that no call resizes it meanwhile.
        if (Context* context = slot.exchange(nullptr)) {
            sum += context->bytes();
            release(context);
        }
    }
    return sum;
}

}  // namespace approxrt
