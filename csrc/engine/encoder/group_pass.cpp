#include "group_pass.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace approxrt {
namespace {

int32_t ceil_div(int64_t a, int64_t b) { return static_cast<int32_t>((a + b - 1) / b); }

}  // namespace

GroupPass::GroupPass(const EncoderModel& model, const KernelTable& kernels, const Tuning& tuning, const Batch& batch,
                     Group group, Team team, Context& context, GroupScratch& scratch)
    : m_(model),
      k_(kernels),
      tuning_(tuning),
      batch_(batch),
      group_(group),
      team_(team),
      c_(context),
      g_(scratch),
      tokens_(batch.cu_seqlens[group.end] - batch.cu_seqlens[group.begin]),
      sequences_(group.end - group.begin),
      hidden_(round_up(model.hidden, kTileN)) {}

// Few heads can be so narrow that they share a strip of outputs; they are taken together.
int32_t GroupPass::heads_together(const TransformerLayer& layer) {
    for (int32_t count = 1; count < layer.num_heads; ++count)
        if (layer.num_heads % count == 0 && count * layer.head_dim % kTileN == 0) return count;
    return layer.num_heads;
}

int32_t GroupPass::block_rows(int32_t rows) const {
    const int team = team_.size();
    const int32_t most = team == 1 ? tuning_.block_tokens : tuning_.team_block_tokens;
    const int32_t count = team * ceil_div(ceil_div(rows, team), most);
    if (count == 1) return rows;
    // Whole panels, so that a block's rows can be quantised into its place among the group's.
    return static_cast<int32_t>(round_up(ceil_div(rows, count), k_.layout.mr));
}

void GroupPass::reserve(const EncoderModel& m, const KernelTable& k, const Tuning& tuning, int team, int32_t tokens,
                        int32_t sequences, int32_t longest, GroupScratch& g, std::vector<ThreadScratch>& threads) {
    const int64_t hidden = round_up(m.hidden, kTileN);
    const Forms forms = m.forms;
    const bool few = team > 1 && tokens <= tuning.few_tokens;
    // No more than block_rows() gives for any smaller group (it does not grow steadily).
    const int64_t most =
        std::min(std::max(tokens, sequences), team == 1 ? tuning.block_tokens : tuning.team_block_tokens);
    const auto rows = static_cast<int32_t>(few ? tokens : round_up(most, k.layout.mr));
    int64_t inputs = std::max(m.hidden, m.words.width), wide = 0, together = 0, inner = 0, attention = 0, always = 0;
    for (const TransformerLayer& layer : m.layers) {
        if (layer.intermediate) {
            inputs = std::max<int64_t>(inputs, layer.down.k());
            wide = std::max(wide, layer.up.n_padded());
        }
        if (!layer.num_heads) continue;
        inputs = std::max<int64_t>(inputs, layer.output.k());
        inner = std::max(inner, layer.query.n_padded());
        const int64_t part = few ? layer.num_heads : heads_together(layer);
        together = std::max(together, round_up(part * layer.head_dim, kTileN));
        attention = std::max(attention, attention_scratch_floats(longest, layer.head_dim));
        if (!layer.keep || longest < layer.sign_from) continue;
        attention = std::max(attention, sign_attention_scratch_floats(longest, layer.head_dim));
        always = sign_words(longest);
    }
    g.x.get<float>(tokens * hidden);
    g.first.get<float>(sequences * hidden);
    g.attended.get<float>(tokens * inner);
    g.quantized.reserve(k, forms, tokens, m.hidden);
    g.first_quantized.reserve(k, forms, sequences, m.hidden);
    // Of a gated feed forward both halves are there at once.
    wide *= m.gated ? 2 : 1;
    if (few) g.shared.get<float>(tokens * (wide + hidden));
    for (ThreadScratch& t : threads) {
        t.quantized.reserve(k, forms, rows, inputs);
        t.wide.get<float>(rows * wide);
        t.narrow.get<float>(rows * std::max<int64_t>(hidden, round_up(m.words.width, kTileN)));
        t.heads.get<float>(3 * tokens * together);
        t.attention.get<float>(attention);
        t.always.get<uint64_t>(always);
        if (few) {
            t.first_quantized.reserve(k, forms, sequences, m.hidden);
            t.x.get<float>(tokens * hidden);
            t.first.get<float>(sequences * hidden);
        }
    }
}

void GroupPass::run(Output what, float* out, int64_t ld) {
    const bool first_only = what != Output::kHidden && m_.head.first_only();
    few_tokens() ? encode_by_outputs(first_only) : encode(first_only);
    if (what != Output::kHidden && !first_only) return pool(out, ld);
    const float* rows = first_only ? g_.first.get<float>(0) : g_.x.get<float>(0);
    for (int64_t i = 0; i < (first_only ? sequences_ : tokens_); ++i)
        std::memcpy(out + i * ld, rows + i * hidden_, sizeof(float) * m_.hidden);
}

// -- parts ---------------------------------------------------------------------

void GroupPass::embed(int32_t begin, int32_t rows, float* out, ThreadScratch& scratch, OpTimes* account) {
    const Embeddings& e = m_.embeddings;
    const int32_t first = batch_.cu_seqlens[group_.begin] + begin;
    const bool project = e.projection.has_value();
    const int64_t ld = project ? round_up(m_.words.width, kTileN) : hidden_;
    float* sum = project ? scratch.narrow.get<float>(ld * rows) : out;
    {
        const Timed timed(account, Op::kEmbedding);
        EmbeddingArgs a = m_.words.args();
        a.position = e.position;
        a.token_type = e.token_type;
        a.ids = batch_.ids + first;
        a.positions = c_.positions.get<int32_t>(0) + first;
        a.types = batch_.types ? batch_.types + first : nullptr;
        a.rows = rows;
        a.out = sum;
        a.ldo = ld;
        k_.embedding(a);
    }
    {
        const Timed timed(account, Op::kNorm);
        e.norm.run(k_, m_.eps, sum, ld, rows, sum, ld);
    }
    if (!project) return;
    quantize(scratch.quantized, {&*e.projection}, 0, sum, ld, rows, m_.words.width, account);
    linear(Op::kEmbedding, *e.projection, {sum, ld, rows, &scratch.quantized}, {out, hidden_}, account);
}

void GroupPass::norm(const Norm& norm, const float* in, int32_t rows, float* out, OpTimes* account) {
    const Timed timed(account, Op::kNorm);
    norm.run(k_, m_.eps, in, hidden_, rows, out, hidden_);
}

void GroupPass::norm_quantize(const Norm& norm, const float* in, int32_t rows, float* out, QuantizedRows& to,
                              Forms forms, int32_t first, OpTimes* account) {
    const Timed timed(account, Op::kNorm);
    const int32_t step = forms.any() ? k_.layout.mr : rows;
    for (int32_t i = 0; i < rows; i += step) {
        const int32_t count = std::min(step, rows - i);
        const float* from = in + i * hidden_;
        float* y = out + i * hidden_;
        norm.run(k_, m_.eps, from, hidden_, count, y, hidden_);
        if (forms.any()) to.fill(k_, forms, first + i, y, hidden_, count, m_.hidden);
    }
}

void GroupPass::quantize(QuantizedRows& to, Forms forms, int32_t first, const float* x, int64_t ldx, int32_t rows,
                         int32_t k, OpTimes* account) {
    if (!forms.any()) return;
    const Timed timed(account, Op::kQuantize);
    to.fill(k_, forms, first, x, ldx, rows, k);
}

void GroupPass::linear(Op op, const Linear& w, const In& in, const Linear::Out& out, OpTimes* account) {
    linear(op, w, in, out, 0, w.strips(), account);
}

void GroupPass::linear(Op op, const Linear& w, const In& in, const Linear::Out& out, int32_t strip_begin,
                       int32_t strip_end, OpTimes* account) {
    const Timed timed(account, op, account ? w.macs(strip_begin, strip_end) * in.rows : 0);
    w.run(k_, in, out, strip_begin, strip_end);
}

// Heads head_begin .. head_end-1 of all sequences. `queries` are the rows that ask: all of `in`, or first tokens.
void GroupPass::attend(const TransformerLayer& layer, int32_t head_begin, int32_t head_end, const In& in,
                       const In& queries, bool first_only, float* attended, ThreadScratch& scratch, OpTimes* account) {
    const int32_t d = layer.head_dim, strip_begin = head_begin * d / kTileN;
    const int32_t strip_end = ceil_div(static_cast<int64_t>(head_end) * d, kTileN);
    const int64_t width = static_cast<int64_t>(strip_end - strip_begin) * kTileN;
    float* q = scratch.heads.get<float>(3 * in.rows * width);
    float* k = q + in.rows * width;
    float* v = k + in.rows * width;
    // Whole strips a head: planes of [rows][16], where a head's rows follow one another. Else rows in one piece.
    // And where heads are turned, which the kernel does of rows in one piece.
    const bool planes = d % kTileN == 0 && !m_.turns();
    const int64_t ld = planes ? kTileN : width;
    const auto strip = [&](int32_t rows) { return planes ? static_cast<int64_t>(rows) * kTileN : kTileN; };
    const auto project = [&](const Linear& w, const In& from, float* to) {
        linear(Op::kQkv, w, from, {to, ld, nullptr, 0, Act::kIdentity, strip(from.rows)}, strip_begin, strip_end,
               account);
    };
    project(layer.query, queries, q);
    project(layer.key, in, k);
    project(layer.value, in, v);

    if (m_.turns()) {
        const Timed timed(account, Op::kAttention);
        const int64_t column = head_begin * static_cast<int64_t>(d) - strip_begin * kTileN;
        const auto turn = [&](float* x, int32_t rows) {
            k_.rope({.x = x + column,
                     .ldx = ld,
                     .rows = rows,
                     .heads = head_end - head_begin,
                     .head_dim = d,
                     .cos = m_.cos.data(),
                     .sin = m_.sin.data()});
        };
        for (int32_t i = group_.begin; i < group_.end; ++i) {
            turn(k + offset(i) * ld, length(i));
            // First tokens are at position 0, where nothing turns.
            if (!first_only) turn(q + offset(i) * ld, length(i));
        }
    }

    // Beside quantised linears the 16-bit products lose nothing; an f32 model keeps float arithmetic throughout.
    const bool int16 = !layer.query.is_f32() && !layer.key.is_f32() && !layer.value.is_f32();
    AttentionArgs a{};
    a.ldq = a.ld = ld;
    a.q_strip = strip(queries.rows);
    a.strip = strip(in.rows);
    a.head_dim = d;
    a.scale = 1.0f / std::sqrt(static_cast<float>(d));
    a.ldo = heads_width(layer);
    a.scratch = scratch.attention.get<float>(0);
    a.ldb = -1;
    const int32_t positions = m_.embeddings.max_positions;
    int64_t macs = 0;
    if (account)
        for (int32_t i = group_.begin; i < group_.end; ++i)
            macs += 2ll * (head_end - head_begin) * length(i) * (first_only ? 1 : length(i)) * d;
    const Timed timed(account, Op::kAttention, macs);
    for (int32_t i = group_.begin; i < group_.end; ++i) {
        const int64_t row = first_only ? i - group_.begin : offset(i);
        const bool sign = layer.keep && length(i) >= layer.sign_from;
        const uint64_t* always = sign ? always_kept(i, scratch.always) : nullptr;
        for (int32_t head = head_begin; head < head_end; ++head) {
            const int32_t column = head * d - strip_begin * kTileN;
            a.q = q + column / kTileN * a.q_strip + column % kTileN + row * ld;
            a.k = k + column / kTileN * a.strip + column % kTileN + offset(i) * ld;
            a.v = v + (a.k - k);
            a.n = length(i);
            a.query_begin = 0;
            a.query_end = first_only ? 1 : a.n;
            a.out = attended + row * a.ldo + head * d;
            if (!layer.relative_bias.empty())
                a.bias = layer.relative_bias.data() + head * (2ll * positions - 1) + positions - 1;
            if (sign)
                k_.sign_attention({.a = a,
                                   .keep = layer.keep,
                                   .always = always,
                                   .causal = false,
                                   .offset = 0,
                                   .window = 0,
                                   .rest = layer.rest,
                                   .planes = nullptr,
                                   .kept = nullptr});
            else
                (int16 ? k_.attention_int16 : k_.attention)(a);
        }
    }
}

// As bits: the first token of sequence i and the tokens that the model always keeps.
const uint64_t* GroupPass::always_kept(int32_t i, Scratch& scratch) const {
    const int64_t words = sign_words(length(i));
    uint64_t* bits = scratch.get<uint64_t>(words);
    std::memset(bits, 0, sizeof(uint64_t) * words);
    bits[0] = 1;
    const int32_t* ids = batch_.ids + batch_.cu_seqlens[i];
    for (const int32_t kept : m_.always_kept)
        for (int32_t t = 1; t < length(i); ++t)
            if (ids[t] == kept) bits[t / 64] |= 1ull << (t % 64);
    return bits;
}

void GroupPass::multiply_gate(const float* gate, float* up, int64_t ld, int32_t rows, int32_t width, OpTimes* account) {
    const Timed timed(account, Op::kUp);
    k_.gated({.gate = gate,
              .ldg = ld,
              .up = up,
              .ldu = ld,
              .y = up,
              .ldy = ld,
              .rows = rows,
              .width = width,
              .act = m_.activation});
}

void GroupPass::gather_first(const float* x, float* first) const {
    for (int32_t i = group_.begin; i < group_.end; ++i)
        std::memcpy(first + (i - group_.begin) * hidden_, x + offset(i) * hidden_, sizeof(float) * hidden_);
}

void GroupPass::pool(float* out, int64_t ld) {
    const float* x = g_.x.get<float>(0);
    team_.run(sequences_, [&](int task, int thread) {
        const Timed timed(account(thread), Op::kPooling);
        const int32_t i = group_.begin + task;
        float* to = out + task * ld;
        for (const Pooling pooling : m_.head.pooling) {
            pool_rows(pooling, x + offset(i) * hidden_, hidden_, length(i), m_.hidden, to);
            to += m_.hidden;
        }
    });
}

// -- split by heads, then by tokens ---------------------------------------------

// The last hidden states end in g_.x, or with `first_only` those of first tokens in g_.first.
void GroupPass::encode(bool first_only) {
    const int32_t blocks = m_.blocks();
    float* x = g_.x.get<float>(0);
    float* first = g_.first.get<float>(0);
    int32_t attention = m_.next_attention(0);
    // Without any attention, what follows the embeddings is for first tokens alone.
    const bool none = first_only && attention == blocks;
    token_step(tokens_, [&](int32_t begin, int32_t rows, int thread) {
        embed(begin, rows, x + begin * hidden_, c_.threads[thread], account(thread));
        if (!none) through(0, attention, begin, rows, x + begin * hidden_, thread);
    });
    if (none) {
        gather_first(x, first);
        if (blocks)
            token_step(sequences_, [&](int32_t begin, int32_t rows, int thread) {
                through(0, blocks, begin, rows, first + begin * hidden_, thread);
            });
        return;
    }
    while (attention < blocks) {
        const TransformerLayer& layer = m_.layer(attention);
        const int32_t next = m_.next_attention(attention + 1);
        const bool gather = first_only && next == blocks;
        if (gather)
            team_.run(1, [&](int, int thread) {
                gather_first(x, first);
                quantize(g_.first_quantized, {&layer.query}, 0, first, hidden_, sequences_, m_.hidden, account(thread));
            });
        attention_step(layer, gather);
        float* xs = gather ? first : x;
        token_step(gather ? sequences_ : tokens_, [&](int32_t begin, int32_t rows, int thread) {
            through(attention, next, begin, rows, xs + begin * hidden_, thread);
        });
        attention = next;
    }
}

void GroupPass::attention_step(const TransformerLayer& layer, bool first_only) {
    const int32_t together = heads_together(layer);
    const In in{g_.x.get<float>(0), hidden_, tokens_, &g_.quantized};
    const In first{g_.first.get<float>(0), hidden_, sequences_, &g_.first_quantized};
    team_.run(layer.num_heads / together, [&](int task, int thread) {
        attend(layer, task * together, (task + 1) * together, in, first_only ? first : in, first_only,
               g_.attended.get<float>(0), c_.threads[thread], account(thread));
    });
}

// body(begin, rows, thread) for blocks of `count` rows.
template <class Body>
void GroupPass::token_step(int32_t count, const Body& body) {
    const int32_t block = block_rows(count);
    team_.run(ceil_div(count, block), [&](int task, int thread) {
        const int32_t begin = task * block;
        body(begin, std::min(block, count - begin), thread);
    });
}

// Rows begin .. of x, in place, through blocks from .. to-1 of the model and their norms, and quantised for block `to`.
// Only the first block may be an attention that is not removed: what is left of it is its output projection, of the
// rows of g_.attended.
void GroupPass::through(int32_t from, int32_t to, int32_t begin, int32_t rows, float* x, int thread) {
    ThreadScratch& s = c_.threads[thread];
    OpTimes* account = this->account(thread);
    if (from == to) return quantize(g_.quantized, m_.input_forms(to), begin, x, hidden_, rows, m_.hidden, account);
    float* y = s.narrow.get<float>(0);
    float* up = s.wide.get<float>(0);
    const auto linear = [&](Op op, const Linear& w, const float* in, int64_t ld, const Linear::Out& out) {
        quantize(s.quantized, {&w}, 0, in, ld, rows, w.k(), account);
        this->linear(op, w, {in, ld, rows, &s.quantized}, out, account);
    };
    for (int32_t block = from; block < to; ++block) {
        const TransformerLayer& layer = m_.layer(block);
        const float* sums = y;  // what the norm reads
        if (m_.removed(block)) {
            sums = x;
        } else if (EncoderModel::is_attention(block)) {
            const int64_t inner = heads_width(layer);
            linear(Op::kOutput, layer.output, g_.attended.get<float>(0) + begin * inner, inner,
                   {y, hidden_, x, hidden_});
        } else {
            const int64_t wide = layer.up.n_padded();
            const In in{x, hidden_, rows, &s.quantized};
            if (m_.gated) {
                float* gate = up + rows * wide;
                this->linear(Op::kUp, layer.gate, in, {gate, wide}, account);
                this->linear(Op::kUp, layer.up, in, {up, wide}, account);
                multiply_gate(gate, up, wide, rows, static_cast<int32_t>(wide), account);
            } else {
                this->linear(Op::kUp, layer.up, in, {up, wide, nullptr, 0, m_.activation}, account);
            }
            linear(Op::kDown, layer.down, up, wide, {y, hidden_, x, hidden_});
        }
        const bool last = block + 1 == to;
        norm_quantize(m_.norm(block), sums, rows, x, last ? g_.quantized : s.quantized, m_.input_forms(block + 1),
                      last ? begin : 0, account);
    }
}

}  // namespace approxrt
