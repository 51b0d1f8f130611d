// A step of a few tokens: every linear split by outputs among the threads.
//
// A part computes some outputs of each linear, but needs all inputs. With few tokens they are cheap to make: each part
// normalises and quantises all rows for itself. Parts meet where outputs of all of them are needed: before attention,
// the output projection, feed forward up and down, and the next layer. Query, key and value are split at heads, so
// that a part turns its heads to their positions and puts keys and values into the cache at once.
//
// A stage between two meetings takes microseconds, so all stages of a step are one region of the pool (stages.h).
//
// Memory of a part's own belongs to the part, not to the thread: a thread that is late leaves its part to another.
#include <algorithm>

#include "../stages.h"
#include "decoder_pass.h"

namespace approxrt {

void DecoderPass::run_few() {
    embed(0, step_.tokens, account(0));
    const int parts = pool_.threads();
    const auto layers = static_cast<int32_t>(m_.layers.size());
    Stages stages(parts);
    pool_.run(parts, [&](int, int) {
        Stages::Walk walk(stages);
        for (int32_t i = 0; i < layers; ++i) {
            if (m_.layers[i].num_heads) {
                walk.stage([&](int part) { few_query_key_value(i, part, parts); });
                walk.stage([&](int part) { few_attend(i, part, parts); });
                walk.stage([&](int part) { few_output(i, part, parts); });
            }
            if (m_.layers[i].intermediate) {
                walk.stage([&](int part) { few_up(i, part, parts); });
                walk.stage([&](int part) { few_down(i, part, parts); });
            }
        }
        walk.stage([&](int part) { few_head(part, parts); });
    });
}

void DecoderPass::few_linear(Op op, const Linear& w, const float* x, int64_t ldx, int32_t rows,
                             const FewRows& quantized, const Linear::Out& out, int32_t strip_begin, int32_t strip_end,
                             OpTimes* account) const {
    const Timed timed(account, op, account ? w.macs(strip_begin, strip_end) * rows : 0);
    if (w.input() == Input::kGroups) {
        w.run_groups(k_, quantized.groups(), rows, out, strip_begin, strip_end);
    } else if (w.is_f32() || !k_.fast_gemv) {
        w.run(k_, {x, ldx, rows, &quantized.panels()}, out, strip_begin, strip_end);
    } else {
        w.run_few(k_, quantized.rows(), out, strip_begin, strip_end);
    }
}

void DecoderPass::few_query_key_value(int32_t layer, int part, int parts) {
    const DecoderLayer& l = m_.layers[layer];
    const int32_t rows = step_.tokens, dim = l.head_dim;
    // Heads of whole strips are shared out one by one: those of the query, then of the key, then of the value. Narrow
    // ones share strips: then a matrix is one piece.
    const bool apart = dim % kTileN == 0;
    const int32_t pieces[3] = {apart ? l.num_heads : 1, apart ? l.num_kv_heads : 1, apart ? l.num_kv_heads : 1};
    const Linear* matrices[3] = {&l.query, &l.key, &l.value};
    const Part share(pieces[0] + pieces[1] + pieces[2], part, parts);
    if (share.begin == share.end) return;
    DecoderThread& s = c_.threads[part];
    OpTimes* account = this->account(part);
    float* in = s.narrow.get<float>(0);
    norm(l.attention_norm, c_.x.get<float>(0), rows, in, account);
    few_quantize({&l.query, &l.key, &l.value}, in, hidden_, rows, m_.hidden, part);
    int32_t first = 0;
    for (int i = 0; i < 3; ++i) {
        const int32_t begin = std::max(share.begin - first, 0), end = std::min(share.end - first, pieces[i]);
        first += pieces[i];
        if (begin >= end) continue;
        const int32_t head = apart ? begin : 0;
        const int32_t heads = apart ? end - begin : i == 0 ? l.num_heads : l.num_kv_heads;
        const int32_t strip = head * dim / kTileN;
        const auto strip_end = static_cast<int32_t>(round_up((head + heads) * dim, kTileN) / kTileN);
        const int64_t ld = i == 0 ? query_ld_ : kv_ld_;
        float* to = i == 0 ? c_.query.get<float>(0) : i == 1 ? s.keys.get<float>(0) : s.values.get<float>(0);
        float* y = to + strip * kTileN;
        few_linear(Op::kQkv, *matrices[i], in, hidden_, rows, s.few, {y, ld}, strip, strip_end, account);
        const Timed timed(account, Op::kCache);
        if (i < 2) rope(y, ld, 0, rows, heads, dim);
        if (i > 0) write(layer, i == 1 ? y : nullptr, i == 2 ? y : nullptr, ld, 0, rows, head, heads);
    }
}

void DecoderPass::few_attend(int32_t layer, int part, int parts) {
    const int32_t heads = m_.layers[layer].num_kv_heads, tasks = static_cast<int32_t>(c_.chunks.size()) * heads;
    for (int32_t task = part; task < tasks; task += parts) {
        const Chunk& chunk = c_.chunks[task / heads];
        // A few tokens are one chunk a run.
        if (m_.layers[layer].keep) index(layer, chunk.run, task % heads, part);
        attend(layer, chunk, task % heads, part);
    }
}

void DecoderPass::few_output(int32_t layer, int part, int parts) {
    const Linear& w = m_.layers[layer].output;
    const Part strips(w.strips(), part, parts);
    if (strips.begin == strips.end) return;
    const float* attended = c_.attended.get<float>(0);
    few_quantize({&w}, attended, query_ld_, step_.tokens, w.k(), part);
    float* y = c_.x.get<float>(0) + strips.begin * kTileN;
    few_linear(Op::kOutput, w, attended, query_ld_, step_.tokens, c_.threads[part].few, {y, hidden_, y, hidden_},
               strips.begin, strips.end, account(part));
}

void DecoderPass::few_up(int32_t layer, int part, int parts) {
    const DecoderLayer& l = m_.layers[layer];
    const Part strips(l.up.strips(), part, parts);
    if (strips.begin == strips.end) return;
    const int32_t rows = step_.tokens;
    DecoderThread& s = c_.threads[part];
    OpTimes* account = this->account(part);
    float* in = s.narrow.get<float>(0);
    norm(l.ffn_norm, c_.x.get<float>(0), rows, in, account);
    Forms forms{&l.up};
    if (m_.gated) forms.add({&l.gate});
    few_quantize(forms, in, hidden_, rows, m_.hidden, part);
    float* up = c_.shared.get<float>(0) + strips.begin * kTileN;
    const Act act = m_.gated ? Act::kIdentity : m_.activation;
    few_linear(Op::kUp, l.up, in, hidden_, rows, s.few, {up, wide_, nullptr, 0, act}, strips.begin, strips.end,
               account);
    if (!m_.gated) return;
    float* gate = up + rows * wide_;
    few_linear(Op::kUp, l.gate, in, hidden_, rows, s.few, {gate, wide_}, strips.begin, strips.end, account);
    const Timed timed(account, Op::kQuantize);
    k_.gated({gate, wide_, up, wide_, up, wide_, rows, (strips.end - strips.begin) * kTileN, m_.activation});
}

void DecoderPass::few_down(int32_t layer, int part, int parts) {
    const DecoderLayer& l = m_.layers[layer];
    const Part strips(l.down.strips(), part, parts);
    if (strips.begin == strips.end) return;
    const float* up = c_.shared.get<float>(0);
    if (m_.down_block) {
        float* own = c_.threads[part].wide.get<float>(0);
        spread(up, own, step_.tokens, l.intermediate);
        up = own;
    }
    few_quantize({&l.down}, up, wide_, step_.tokens, l.intermediate, part);
    float* y = c_.x.get<float>(0) + strips.begin * kTileN;
    few_linear(Op::kDown, l.down, up, wide_, step_.tokens, c_.threads[part].few, {y, hidden_, y, hidden_}, strips.begin,
               strips.end, account(part));
}

void DecoderPass::few_head(int part, int parts) {
    const int32_t rows = step_.logit_rows();
    DecoderThread& s = c_.threads[part];
    OpTimes* account = this->account(part);
    float* in = s.narrow.get<float>(0);
    for (int32_t i = 0; i < rows; ++i) norm(m_.head_norm, logit_row(i), 1, in + i * hidden_, account);
    few_logits(in, rows, part, parts);
}

// Logits of rows that are normalised, the part's share of them.
void DecoderPass::few_logits(const float* x, int32_t rows, int part, int parts) {
    const Part strips(m_.head.strips(), part, parts);
    if (strips.begin == strips.end) return;
    few_quantize({&m_.head}, x, hidden_, rows, m_.hidden, part);
    few_linear(Op::kHead, m_.head, x, hidden_, rows, c_.threads[part].few,
               {step_.logits + strips.begin * kTileN, m_.head.n_padded()}, strips.begin, strips.end, account(part));
}

void DecoderPass::few_quantize(Forms forms, const float* x, int64_t ldx, int32_t rows, int32_t k, int part) {
    const Timed timed(account(part), Op::kQuantize);
    c_.threads[part].few.fill(k_, forms, x, ldx, rows, k);
}

}  // namespace approxrt
