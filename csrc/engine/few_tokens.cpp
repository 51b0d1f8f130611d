// The layers over a few tokens, every linear split by outputs among the team.
//
// A part computes some outputs of each linear, and so each weight is read by one thread; but every part needs all
// inputs. They are cheap to make when tokens are few: each part normalises and quantises all rows for itself, into
// memory of its own, and the team meets only where outputs of all parts are needed: after attention, output projection,
// feed forward up and feed forward down.
//
// Memory of its own belongs to the part, not to the thread: a thread that is late leaves its part to another.
#include <algorithm>

#include "group_pass.h"

namespace approxrt {
namespace {

// Part `part` of `parts` of 0 .. count-1.
struct Share {
    int32_t begin, end;
    Share(int32_t count, int part, int parts)
        : begin(static_cast<int32_t>(static_cast<int64_t>(count) * part / parts)),
          end(static_cast<int32_t>(static_cast<int64_t>(count) * (part + 1) / parts)) {}
};

}  // namespace

bool GroupPass::few_tokens() const { return team_.size() > 1 && tokens_ <= tuning_.few_tokens; }

void GroupPass::encode_by_outputs(bool first_only) {
    const int parts = team_.size();
    const auto count = static_cast<int32_t>(m_.layers.size());
    float* attended = g_.attended.get<float>(0);
    float* shared = g_.shared.get<float>(0);  // the sums that the next norm reads, or the wide activations

    // The rows that run on: all tokens, and from the last layer's attention first tokens, if only they matter.
    int32_t rows = tokens_;
    const auto own = [&](ThreadScratch& s, bool first) { return (first ? s.first : s.x).get<float>(0); };
    const auto linear = [&](Op op, const Linear& w, ThreadScratch& s, const float* in, int64_t ld, int part,
                            Linear::Out out, OpTimes* account) {
        const Share share(w.strips(), part, parts);
        if (share.begin == share.end) return;
        quantize(s.quantized, {&w}, 0, in, ld, rows, w.k(), account);
        out.y += share.begin * kTileN;
        if (out.residual) out.residual += share.begin * kTileN;
        this->linear(op, w, {in, ld, rows, &s.quantized}, out, share.begin, share.end, account);
    };

    for (int32_t i = 0; i < count; ++i) {
        const EncoderLayer& layer = m_.layers[i];
        const bool first = first_only && i == count - 1;
        const int64_t inner = heads_width(layer), wide = layer.up.n_padded();
        team_.run(parts, [&](int part, int thread) {
            ThreadScratch& s = c_.threads[part];
            OpTimes* account = this->account(thread);
            float* x = own(s, false);
            if (i)
                norm(m_.layers[i - 1].ffn_norm, shared, rows, x, account);
            else
                embed(0, rows, x, s, account);
            if (first) gather_first(x, own(s, true));
            const int32_t together = heads_together(layer);
            const Share heads(layer.num_heads / together, part, parts);
            if (heads.begin == heads.end) return;
            quantize(s.quantized, layer.input_forms(), 0, x, hidden_, rows, m_.hidden, account);
            const In in{x, hidden_, rows, &s.quantized};
            In queries = in;
            if (first) {
                quantize(s.first_quantized, {&layer.query}, 0, own(s, true), hidden_, sequences_, m_.hidden, account);
                queries = {own(s, true), hidden_, sequences_, &s.first_quantized};
            }
            attend(layer, heads.begin * together, heads.end * together, in, queries, first, attended, s, account);
        });
        if (first) rows = sequences_;
        team_.run(parts, [&](int part, int thread) {
            ThreadScratch& s = c_.threads[part];
            linear(Op::kOutput, layer.output, s, attended, inner, part, {shared, hidden_, own(s, first), hidden_},
                   account(thread));
        });
        // The norm of all rows replaces the residual, which no part needs any more. The wide activations may not
        // overwrite the sums that other parts still read: they lie behind them.
        float* up = shared + rows * hidden_;
        team_.run(parts, [&](int part, int thread) {
            ThreadScratch& s = c_.threads[part];
            norm(layer.attention_norm, shared, rows, own(s, first), account(thread));
            linear(Op::kUp, layer.up, s, own(s, first), hidden_, part, {up, wide, nullptr, 0, m_.activation},
                   account(thread));
        });
        team_.run(parts, [&](int part, int thread) {
            ThreadScratch& s = c_.threads[part];
            linear(Op::kDown, layer.down, s, up, wide, part, {shared, hidden_, own(s, first), hidden_},
                   account(thread));
        });
    }
    float* result = (first_only ? g_.first : g_.x).get<float>(0);
    team_.run(1, [&](int, int thread) {
        if (count)
            norm(m_.layers[count - 1].ffn_norm, shared, rows, result, account(thread));
        else
            embed(0, rows, g_.x.get<float>(0), c_.threads[0], account(thread));
        if (!count && first_only) gather_first(g_.x.get<float>(0), result);
    });
}

}  // namespace approxrt
