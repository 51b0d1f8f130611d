// A step of many tokens: blocks of tokens through everything between two attentions.
#include <algorithm>

#include "pass.h"

namespace approxrt {
namespace {

// Strips of `gate` and `up` that become their product before the next ones are computed: while a block's sums are in
// L2, and with a tenth of the memory.
constexpr int32_t kGatedStrips = 8;

}  // namespace

int64_t DecoderPass::gate_ld() { return kGatedStrips * kTileN; }

void DecoderPass::run_blocks() {
    const auto layers = static_cast<int32_t>(m_.layers.size());
    const int threads = pool_.threads();
    // Even shares in whole panels, at most block_tokens each.
    const int32_t panels = static_cast<int32_t>(round_up(step_.tokens, k_.layout.mr) / k_.layout.mr);
    const int32_t most = std::max(1, block_tokens_ / k_.layout.mr);
    int32_t tasks = (panels + most - 1) / most;
    tasks = std::min(panels, (tasks + threads - 1) / threads * threads);
    const auto each_block = [&](const auto& body) {
        pool_.run(tasks, [&](int task, int thread) {
            const Part part(panels, task, tasks);
            const int32_t begin = part.begin * k_.layout.mr;
            body(begin, std::min(part.end * k_.layout.mr, step_.tokens) - begin, thread);
        });
    };
    int32_t attention = m_.next_attention(0);
    each_block([&](int32_t begin, int32_t rows, int thread) {
        embed(begin, rows, account(thread));
        for (int32_t l = 0; l < attention; ++l) feed_forward(l, begin, rows, thread);
        if (attention < layers) attention_in(attention, begin, rows, thread);
    });
    while (attention < layers) {
        const int32_t heads = m_.layers[attention].num_kv_heads, next = m_.next_attention(attention + 1);
        if (m_.layers[attention].keep)
            pool_.run(step_.count * heads,
                      [&](int task, int thread) { index(attention, task / heads, task % heads, thread); });
        pool_.run(static_cast<int>(c_.chunks.size()) * heads,
                  [&](int task, int thread) { attend(attention, c_.chunks[task / heads], task % heads, thread); });
        each_block([&](int32_t begin, int32_t rows, int thread) {
            attention_out(attention, begin, rows, thread);
            for (int32_t l = attention; l < next; ++l) feed_forward(l, begin, rows, thread);
            if (next < layers) attention_in(next, begin, rows, thread);
        });
        attention = next;
    }
}

void DecoderPass::linear(Op op, const Linear& w, const float* x, int64_t ldx, int32_t rows,
                         const QuantizedRows& quantized, const Linear::Out& out, OpTimes* account) const {
    linear(op, w, x, ldx, rows, quantized, out, 0, w.strips(), account);
}

void DecoderPass::linear(Op op, const Linear& w, const float* x, int64_t ldx, int32_t rows,
                         const QuantizedRows& quantized, const Linear::Out& out, int32_t strip_begin, int32_t strip_end,
                         OpTimes* account) const {
    const Timed timed(account, op, account ? w.macs(strip_begin, strip_end) * rows : 0);
    w.run(k_, {x, ldx, rows, &quantized}, out, strip_begin, strip_end);
}

// The norm of rows into s.narrow, and quantised out of L1, a panel at a time.
void DecoderPass::norm_quantize(const Norm& norm, const float* x, int32_t rows, Forms forms, DecoderThread& s,
                                OpTimes* account) const {
    float* y = s.narrow.get<float>(0);
    const int32_t step = forms.any() ? k_.layout.mr : rows;
    for (int32_t i = 0; i < rows; i += step) {
        const int32_t count = std::min(step, rows - i);
        this->norm(norm, x + i * hidden_, count, y + i * hidden_, account);
        const Timed timed(account, Op::kQuantize);
        if (forms.any()) s.quantized.fill(k_, forms, i, y + i * hidden_, hidden_, count, m_.hidden);
    }
}

void DecoderPass::attention_in(int32_t layer, int32_t begin, int32_t rows, int thread) {
    const TransformerLayer& l = m_.layers[layer];
    DecoderThread& s = c_.threads[thread];
    OpTimes* account = this->account(thread);
    norm_quantize(l.attention_norm, c_.x.get<float>(0) + begin * hidden_, rows, {&l.query, &l.key, &l.value}, s,
                  account);
    const float* in = s.narrow.get<float>(0);
    float* query = c_.query.get<float>(0) + begin * query_ld_;
    float* keys = s.keys.get<float>(0);
    float* values = s.values.get<float>(0);
    linear(Op::kQkv, l.query, in, hidden_, rows, s.quantized, {query, query_ld_}, account);
    linear(Op::kQkv, l.key, in, hidden_, rows, s.quantized, {keys, kv_ld_}, account);
    linear(Op::kQkv, l.value, in, hidden_, rows, s.quantized, {values, kv_ld_}, account);
    const Timed timed(account, Op::kCache);
    rope(query, query_ld_, begin, rows, l.num_heads, l.head_dim);
    rope(keys, kv_ld_, begin, rows, l.num_kv_heads, l.head_dim);
    write(layer, keys, values, kv_ld_, begin, rows, 0, l.num_kv_heads);
}

void DecoderPass::attention_out(int32_t layer, int32_t begin, int32_t rows, int thread) {
    const Linear& w = m_.layers[layer].output;
    DecoderThread& s = c_.threads[thread];
    OpTimes* account = this->account(thread);
    const float* in = c_.attended.get<float>(0) + begin * query_ld_;
    float* x = c_.x.get<float>(0) + begin * hidden_;
    if (!w.is_f32()) {
        const Timed timed(account, Op::kQuantize);
        s.quantized.fill(k_, {&w}, 0, in, query_ld_, rows, w.k());
    }
    linear(Op::kOutput, w, in, query_ld_, rows, s.quantized, {x, hidden_, x, hidden_}, account);
}

void DecoderPass::feed_forward(int32_t layer, int32_t begin, int32_t rows, int thread) {
    const TransformerLayer& l = m_.layers[layer];
    if (!l.intermediate) return;
    DecoderThread& s = c_.threads[thread];
    OpTimes* account = this->account(thread);
    float* x = c_.x.get<float>(0) + begin * hidden_;
    float* up = s.wide.get<float>(0);
    Forms forms{&l.up};
    if (m_.gated) forms.add({&l.gate});
    norm_quantize(l.ffn_norm, x, rows, forms, s, account);
    const float* in = s.narrow.get<float>(0);
    if (m_.gated) {
        float* gate = s.gate.get<float>(0);
        const int64_t ldg = gate_ld();
        for (int32_t strip = 0; strip < l.up.strips(); strip += kGatedStrips) {
            const int32_t end = std::min(strip + kGatedStrips, l.up.strips());
            float* to = up + strip * kTileN;
            linear(Op::kUp, l.gate, in, hidden_, rows, s.quantized, {gate, ldg}, strip, end, account);
            linear(Op::kUp, l.up, in, hidden_, rows, s.quantized, {to, wide_}, strip, end, account);
            const Timed timed(account, Op::kQuantize);
            k_.gated({.gate = gate,
                      .ldg = ldg,
                      .up = to,
                      .ldu = wide_,
                      .y = to,
                      .ldy = wide_,
                      .rows = rows,
                      .width = (end - strip) * kTileN,
                      .act = m_.activation});
        }
        const int32_t step = l.down.is_f32() ? rows : k_.layout.mr;
        for (int32_t i = 0; i < rows; i += step) {
            const int32_t count = std::min(step, rows - i);
            const Timed timed(account, Op::kQuantize);
            float* y = up + i * wide_;
            spread(y, y, count, l.intermediate);
            if (!l.down.is_f32()) s.quantized.fill(k_, {&l.down}, i, y, wide_, count, l.intermediate);
        }
    } else {
        linear(Op::kUp, l.up, in, hidden_, rows, s.quantized, {up, wide_, nullptr, 0, m_.activation}, account);
        const Timed timed(account, Op::kQuantize);
        spread(up, up, rows, l.intermediate);
        if (!l.down.is_f32()) s.quantized.fill(k_, {&l.down}, 0, up, wide_, rows, l.intermediate);
    }
    linear(Op::kDown, l.down, up, wide_, rows, s.quantized, {x, hidden_, x, hidden_}, account);
}

}  // namespace approxrt
