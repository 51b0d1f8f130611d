// A step of a few tokens: every linear split by outputs among the threads.
//
// A part computes some outputs of each linear, but needs all inputs. With few tokens they are cheap to make: each part
// normalises and quantises all rows for itself. Threads meet where outputs of all parts are needed: before attention,
// the output projection, feed forward up and down, and the next layer. Query, key and value are split at heads, so
// that a part turns its heads to their positions and puts keys and values into the cache at once.
//
// Memory of a part's own belongs to the part, not to the thread: a thread that is late leaves its part to another.
#include <algorithm>

#include "decoder_pass.h"

namespace approxrt {

void DecoderPass::run_few() {
    embed(0, step_.tokens, account(0));
    for (int32_t layer = 0; layer < static_cast<int32_t>(m_.layers.size()); ++layer) {
        if (m_.layers[layer].num_heads) few_attention(layer);
        if (m_.layers[layer].intermediate) few_feed_forward(layer);
    }
}

void DecoderPass::few_linear(Op op, const Linear& w, const float* x, int64_t ldx, int32_t rows,
                             const FewRows& quantized, const Linear::Out& out, int32_t strip_begin, int32_t strip_end,
                             OpTimes* account) const {
    const Timed timed(account, op, account ? w.macs(strip_begin, strip_end) * rows : 0);
    if (w.is_f32() || !k_.fast_gemv) {
        w.run(k_, {x, ldx, rows, &quantized.panels()}, out, strip_begin, strip_end);
    } else {
        w.run_few(k_, quantized.rows(), out, strip_begin, strip_end);
    }
}

void DecoderPass::few_attention(int32_t layer) {
    const DecoderLayer& l = m_.layers[layer];
    const int parts = pool_.threads();
    const int32_t rows = step_.tokens, dim = l.head_dim;
    float* x = c_.x.get<float>(0);
    float* query = c_.query.get<float>(0);
    float* attended = c_.attended.get<float>(0);
    // Heads of whole strips are shared out one by one: those of the query, then of the key, then of the value. Narrow
    // ones share strips: then a matrix is one piece.
    const bool apart = dim % kTileN == 0;
    const int32_t pieces[3] = {apart ? l.num_heads : 1, apart ? l.num_kv_heads : 1, apart ? l.num_kv_heads : 1};
    const Linear* matrices[3] = {&l.query, &l.key, &l.value};
    pool_.run(parts, [&](int part, int thread) {
        const Part share(pieces[0] + pieces[1] + pieces[2], part, parts);
        if (share.begin == share.end) return;
        DecoderThread& s = c_.threads[part];
        OpTimes* account = this->account(thread);
        float* in = s.narrow.get<float>(0);
        norm(l.attention_norm, x, rows, in, account);
        {
            const Timed timed(account, Op::kQuantize);
            s.few.fill(k_, {&l.query, &l.key, &l.value}, in, hidden_, rows, m_.hidden);
        }
        int32_t first = 0;
        for (int i = 0; i < 3; ++i) {
            const int32_t begin = std::max(share.begin - first, 0), end = std::min(share.end - first, pieces[i]);
            first += pieces[i];
            if (begin >= end) continue;
            const int32_t head = apart ? begin : 0;
            const int32_t heads = apart ? end - begin : i == 0 ? l.num_heads : l.num_kv_heads;
            const int32_t strip = head * dim / kTileN;
            const int32_t strip_end = static_cast<int32_t>(round_up((head + heads) * dim, kTileN) / kTileN);
            const int64_t ld = i == 0 ? query_ld_ : kv_ld_;
            float* y = (i == 0 ? query : i == 1 ? s.keys.get<float>(0) : s.values.get<float>(0)) + strip * kTileN;
            few_linear(Op::kQkv, *matrices[i], in, hidden_, rows, s.few, {y, ld}, strip, strip_end, account);
            const Timed timed(account, Op::kCache);
            if (i < 2) rope(y, ld, 0, rows, heads, dim);
            if (i > 0) write(layer, i == 1 ? y : nullptr, i == 2 ? y : nullptr, ld, 0, rows, head, heads);
        }
    });
    const int32_t kv_heads = l.num_kv_heads;
    pool_.run(static_cast<int>(c_.chunks.size()) * kv_heads,
              [&](int task, int thread) { attend(layer, c_.chunks[task / kv_heads], task % kv_heads, thread); });
    pool_.run(parts, [&](int part, int thread) {
        const Part strips(l.output.strips(), part, parts);
        if (strips.begin == strips.end) return;
        DecoderThread& s = c_.threads[part];
        OpTimes* account = this->account(thread);
        if (!l.output.is_f32()) s.few.fill(k_, {&l.output}, attended, query_ld_, rows, l.output.k());
        float* y = x + strips.begin * kTileN;
        few_linear(Op::kOutput, l.output, attended, query_ld_, rows, s.few, {y, hidden_, y, hidden_}, strips.begin,
                   strips.end, account);
    });
}

void DecoderPass::few_feed_forward(int32_t layer) {
    const DecoderLayer& l = m_.layers[layer];
    const int parts = pool_.threads();
    const int32_t rows = step_.tokens;
    float* x = c_.x.get<float>(0);
    float* up = c_.shared.get<float>(0);
    float* gate = up + rows * wide_;
    pool_.run(parts, [&](int part, int thread) {
        const Part strips(l.up.strips(), part, parts);
        if (strips.begin == strips.end) return;
        DecoderThread& s = c_.threads[part];
        OpTimes* account = this->account(thread);
        float* in = s.narrow.get<float>(0);
        norm(l.ffn_norm, x, rows, in, account);
        Forms forms{&l.up};
        if (m_.gated) forms.add({&l.gate});
        {
            const Timed timed(account, Op::kQuantize);
            s.few.fill(k_, forms, in, hidden_, rows, m_.hidden);
        }
        float* y = up + strips.begin * kTileN;
        const Act act = m_.gated ? Act::kIdentity : m_.activation;
        few_linear(Op::kUp, l.up, in, hidden_, rows, s.few, {y, wide_, nullptr, 0, act}, strips.begin, strips.end,
                   account);
        if (!m_.gated) return;
        float* g = gate + strips.begin * kTileN;
        few_linear(Op::kUp, l.gate, in, hidden_, rows, s.few, {g, wide_}, strips.begin, strips.end, account);
        const Timed timed(account, Op::kQuantize);
        k_.gated({g, wide_, y, wide_, y, wide_, rows, (strips.end - strips.begin) * kTileN, m_.activation});
    });
    pool_.run(parts, [&](int part, int thread) {
        const Part strips(l.down.strips(), part, parts);
        if (strips.begin == strips.end) return;
        DecoderThread& s = c_.threads[part];
        OpTimes* account = this->account(thread);
        if (!l.down.is_f32()) {
            const Timed timed(account, Op::kQuantize);
            s.few.fill(k_, {&l.down}, up, wide_, rows, l.intermediate);
        }
        float* y = x + strips.begin * kTileN;
        few_linear(Op::kDown, l.down, up, wide_, rows, s.few, {y, hidden_, y, hidden_}, strips.begin, strips.end,
                   account);
    });
}

}  // namespace approxrt
