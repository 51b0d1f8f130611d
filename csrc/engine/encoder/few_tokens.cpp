// The layers over a few tokens, every linear split by outputs among the team.
//
// A part computes some outputs of each linear, and so each weight is read by one thread; but every part needs all
// inputs. They are cheap to make when tokens are few: each part normalises and quantises all rows for itself, into
// memory of its own, and the team meets only where outputs of all parts are needed: after attention, output projection,
// feed forward up and feed forward down. For a removed block it does not meet: its norm is one more to catch up with.
//
// Memory of its own belongs to the part, not to the thread: a thread that is late leaves its part to another.
#include <algorithm>

#include "engine/common/part.h"
#include "group_pass.h"

namespace approxrt {
bool GroupPass::few_tokens() const { return team_.size() > 1 && tokens_ <= tuning_.few_tokens; }

void GroupPass::encode_by_outputs(bool first_only) {
    const int parts = team_.size();
    const int32_t blocks = m_.blocks();
    float* attended = g_.attended.get<float>(0);
    float* shared = g_.shared.get<float>(0);  // the sums that the next norm reads, or the wide activations

    // The rows that run on: all tokens, and from the last attention first tokens, if only they matter.
    bool first = first_only && m_.next_attention(0) == blocks;
    int32_t rows = first ? sequences_ : tokens_;
    // The block whose sums are in `shared`; -1: the embeddings are still to be looked up.
    int32_t done = -1;
    // The hidden states before `block`, in `all` or (only first tokens) in `firsts`: at first the embeddings, later the
    // norms of what was done and of removed blocks behind it.
    const auto catch_up = [&](int32_t block, float* all, float* firsts, ThreadScratch& s, OpTimes* account) {
        float* x = first ? firsts : all;
        const float* in = x;
        if (done < 0) {
            embed(0, tokens_, all, s, account);
            if (first) gather_first(all, firsts);
        } else {
            in = shared;
        }
        for (int32_t b = std::max(done, 0); b < block; ++b, in = x) norm(m_.norm(b), in, rows, x, account);
        return x;
    };
    const auto own = [&](ThreadScratch& s) { return (first ? s.first : s.x).get<float>(0); };
    const auto linear = [&](Op op, const Linear& w, ThreadScratch& s, const float* in, int64_t ld, int part,
                            Linear::Out out, OpTimes* account) {
        const Part share(w.strips(), part, parts);
        if (share.begin == share.end) return;
        quantize(s.quantized, {&w}, 0, in, ld, rows, w.k(), account);
        out.y += share.begin * kTileN;
        if (out.residual) out.residual += share.begin * kTileN;
        this->linear(op, w, {in, ld, rows, &s.quantized}, out, share.begin, share.end, account);
    };

    for (int32_t block = m_.next_block(0); block < blocks; block = m_.next_block(block + 1)) {
        const TransformerLayer& layer = m_.layer(block);
        if (EncoderModel::is_attention(block)) {
            const bool gather = first_only && m_.next_attention(block + 1) == blocks;
            const int64_t inner = heads_width(layer);
            team_.run(parts, [&](int part, int thread) {
                ThreadScratch& s = c_.threads[part];
                OpTimes* account = this->account(thread);
                const float* x = catch_up(block, s.x.get<float>(0), s.first.get<float>(0), s, account);
                if (gather) gather_first(x, s.first.get<float>(0));
                const int32_t together = heads_together(layer);
                const Part heads(layer.num_heads / together, part, parts);
                if (heads.begin == heads.end) return;
                quantize(s.quantized, m_.input_forms(block), 0, x, hidden_, rows, m_.hidden, account);
                const In in{x, hidden_, rows, &s.quantized};
                In queries = in;
                if (gather) {
                    const float* asking = s.first.get<float>(0);
                    quantize(s.first_quantized, {&layer.query}, 0, asking, hidden_, sequences_, m_.hidden, account);
                    queries = {asking, hidden_, sequences_, &s.first_quantized};
                }
                attend(layer, heads.begin * together, heads.end * together, in, queries, gather, attended, s, account);
            });
            if (gather) first = true, rows = sequences_;
            team_.run(parts, [&](int part, int thread) {
                ThreadScratch& s = c_.threads[part];
                linear(Op::kOutput, layer.output, s, attended, inner, part, {shared, hidden_, own(s), hidden_},
                       account(thread));
            });
        } else {
            // The norm of all rows replaces the residual, which no part needs any more. The wide activations may not
            // overwrite the sums that other parts still read: they lie behind them.
            float* up = shared + rows * hidden_;
            const int64_t wide = layer.up.n_padded();
            team_.run(parts, [&](int part, int thread) {
                ThreadScratch& s = c_.threads[part];
                const float* x = catch_up(block, s.x.get<float>(0), s.first.get<float>(0), s, account(thread));
                if (!m_.gated) {
                    const Linear::Out out{up, wide, nullptr, 0, m_.activation};
                    return linear(Op::kUp, layer.up, s, x, hidden_, part, out, account(thread));
                }
                float* gate = up + rows * wide;
                linear(Op::kUp, layer.gate, s, x, hidden_, part, {gate, wide}, account(thread));
                linear(Op::kUp, layer.up, s, x, hidden_, part, {up, wide}, account(thread));
                const Part share(layer.up.strips(), part, parts);
                const int64_t first_column = share.begin * kTileN;
                multiply_gate(gate + first_column, up + first_column, wide, rows,
                              static_cast<int32_t>((share.end - share.begin) * kTileN), account(thread));
            });
            team_.run(parts, [&](int part, int thread) {
                ThreadScratch& s = c_.threads[part];
                linear(Op::kDown, layer.down, s, up, wide, part, {shared, hidden_, own(s), hidden_}, account(thread));
            });
        }
        done = block;
    }
    team_.run(1, [&](int, int thread) {
        catch_up(blocks, g_.x.get<float>(0), g_.first.get<float>(0), c_.threads[0], account(thread));
    });
}

}  // namespace approxrt
