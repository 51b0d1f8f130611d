// A step of a few tokens: every linear split by outputs among the threads.
//
// A part computes some outputs of each linear, but needs all inputs. With few tokens they are cheap to make: each part
// normalises and quantises all rows for itself. Parts meet where outputs of all of them are needed: before attention,
// the output projection, feed forward up and down, and the next layer. Query, key and value are split at heads, so
// that a part turns its heads to their positions and puts keys and values into the cache at once.
//
// A stage between two meetings takes microseconds, so all stages of a step are one region of the pool (stages.h). Who
// waits at the end of one already fetches what it reads first in the next: memory is what limits a step, and a thread
// that only waited would leave its share of it unused.
//
// Memory of a part's own belongs to the part, not to the thread: a thread that is late leaves its part to another.
#include <algorithm>

#include "stages.h"
#include "pass.h"

namespace approxrt {

void DecoderPass::run_few() {
    const int parts = pool_.threads();
    const std::vector<FewStage>& plan = c_.few_stages;
    Stages stages(parts, c_.claims.data());
    pool_.run(parts, [&](int, int thread) {
        Stages::Walk walk(stages, thread);
        Ahead now, next;  // of the thread's own part
        for (size_t i = 0; i < plan.size(); ++i) {
            next.clear();
            bool asked = i + 1 == plan.size();
            const auto ask = [&] {
                if (!asked) few_ahead(plan[i + 1], thread, parts, next);
                asked = true;
            };
            Ahead none;
            walk.stage([&](int part) { few_stage(plan[i], part, parts, part == thread ? now : none); },
                       [&] {
                           ask();
                           return next.fetch();
                       });
            ask();
            now = next;
        }
    });
}

void DecoderPass::plan_few() {
    using What = FewStage::What;
    c_.few_stages.assign(1, {What::kEmbed, 0});
    for (int32_t i = 0; i < static_cast<int32_t>(m_.layers.size()); ++i) {
        if (m_.layers[i].num_heads)
            for (const What what : {What::kQueryKeyValue, What::kAttend, What::kOutput})
                c_.few_stages.push_back({what, i});
        if (m_.layers[i].intermediate)
            for (const What what : {What::kUp, What::kDown}) c_.few_stages.push_back({what, i});
    }
    if (m_.preview) {
        for (const What what : {What::kProject, What::kPreview, What::kShortlist, What::kRefine})
            c_.few_stages.push_back({what, 0});
    } else {
        c_.few_stages.push_back({What::kHead, 0});
    }
    const size_t threads = pool_.threads();
    if (c_.claims.size() != threads) c_.claims = std::vector<Stages::Claim>(threads);
}

// `ahead` goes on with what the part reads and did not fetch while it waited.
void DecoderPass::few_stage(const FewStage& stage, int part, int parts, Ahead& ahead) {
    switch (stage.what) {
        case FewStage::What::kEmbed:
            if (part == 0) embed(0, step_.tokens, account(0));
            return;
        case FewStage::What::kQueryKeyValue:
            return few_query_key_value(stage.layer, part, parts, ahead);
        case FewStage::What::kAttend:
            return few_attend(stage.layer, part, parts);
        case FewStage::What::kOutput:
            return few_output(stage.layer, part, parts, ahead);
        case FewStage::What::kUp:
            return few_up(stage.layer, part, parts, ahead);
        case FewStage::What::kDown:
            return few_down(stage.layer, part, parts, ahead);
        case FewStage::What::kHead:
            return few_head(part, parts);
        case FewStage::What::kProject:
            return few_project(part, parts);
        case FewStage::What::kPreview:
            return few_preview(step_.logit_rows(), part, parts);
        case FewStage::What::kShortlist:
            return few_shortlist(step_.logit_rows(), part, parts);
        case FewStage::What::kRefine:
            return few_refine(c_.threads[part].narrow.data<float>(), step_.logit_rows(), part, parts);
    }
}

// What a part of a stage reads that no stage before it writes, in the order of reading.
void DecoderPass::few_ahead(const FewStage& stage, int part, int parts, Ahead& ahead) const {
    const TransformerLayer& l = m_.layers[stage.layer];
    const auto share = [&](const Linear& w) {
        const Part strips(w.strips(), part, parts);
        ahead.add(w.memory(strips.begin, strips.end));
    };
    switch (stage.what) {
        case FewStage::What::kEmbed:
            return;
        case FewStage::What::kQueryKeyValue:
            return each_projection(stage.layer, part, parts, [&](const Projection& p) {
                ahead.add(p.matrix->memory(p.strip_begin, p.strip_end));
            });
        case FewStage::What::kAttend:
            for (size_t task = part; !l.keep && task < c_.chunks.size() * l.num_kv_heads; task += parts) {
                const KvCache& cache = *step_.runs[c_.chunks[task / l.num_kv_heads].run].cache;
                const CacheHead head = cache.head(stage.layer, static_cast<int32_t>(task % l.num_kv_heads));
                const size_t element = cache_element_size(head.kind), tokens = cache.length();
                ahead.add({head.keys, tokens * head.head_dim * element});
                for (int64_t c = 0; c < head.head_dim; c += kCacheBlock)
                    ahead.add({static_cast<const char*>(head.values) + c * head.capacity * element,
                               tokens * kCacheBlock * element});
            }
            return share(l.output);
        case FewStage::What::kOutput:
            return share(l.output);
        case FewStage::What::kUp:
            share(l.up);
            if (m_.gated) share(l.gate);
            return;
        case FewStage::What::kDown:
            return share(l.down);
        case FewStage::What::kHead:
            return share(m_.head);
        case FewStage::What::kProject:
            share(m_.preview->project);
            return share(m_.preview->out);
        case FewStage::What::kPreview:
            return share(m_.preview->out);
        case FewStage::What::kShortlist:
        case FewStage::What::kRefine:
            return;
    }
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

// body(Projection) for a part's share of query, key and value. Heads of whole strips are shared out one by one: those
// of the query, then of the key, then of the value. Narrow ones share strips: then a matrix is one piece.
template <class Body>
void DecoderPass::each_projection(int32_t layer, int part, int parts, const Body& body) const {
    const TransformerLayer& l = m_.layers[layer];
    const int32_t dim = l.head_dim;
    const bool apart = dim % kTileN == 0;
    const int32_t heads_of[3] = {l.num_heads, l.num_kv_heads, l.num_kv_heads};
    const Linear* matrices[3] = {&l.query, &l.key, &l.value};
    const auto pieces = [&](int i) { return apart ? heads_of[i] : 1; };
    const Part share(pieces(0) + pieces(1) + pieces(2), part, parts);
    int32_t first = 0;
    for (int i = 0; i < 3; first += pieces(i), ++i) {
        const int32_t begin = std::max(share.begin - first, 0), end = std::min(share.end - first, pieces(i));
        if (begin >= end) continue;
        const int32_t head = apart ? begin : 0, heads = apart ? end - begin : heads_of[i];
        body({i, matrices[i], head, heads, head * dim / kTileN,
              static_cast<int32_t>(round_up((head + heads) * dim, kTileN) / kTileN)});
    }
}

void DecoderPass::few_query_key_value(int32_t layer, int part, int parts, Ahead& ahead) {
    const TransformerLayer& l = m_.layers[layer];
    const int32_t rows = step_.tokens;
    DecoderThread& s = c_.threads[part];
    OpTimes* account = this->account(part);
    float* in = s.narrow.get<float>(0);
    bool ready = false;
    each_projection(layer, part, parts, [&](const Projection& p) {
        if (!ready) {
            ahead.fetch_more();
            norm(l.attention_norm, c_.x.get<float>(0), rows, in, account);
            ahead.fetch_more();
            few_quantize({&l.query, &l.key, &l.value}, in, hidden_, rows, m_.hidden, part);
            ahead.fetch_more();
            ready = true;
        }
        const int64_t ld = p.which == 0 ? query_ld_ : kv_ld_;
        float* to = p.which == 0   ? c_.query.get<float>(0)
                    : p.which == 1 ? s.keys.get<float>(0)
                                   : s.values.get<float>(0);
        float* y = to + p.strip_begin * kTileN;
        few_linear(Op::kQkv, *p.matrix, in, hidden_, rows, s.few, {y, ld}, p.strip_begin, p.strip_end, account);
        const Timed timed(account, Op::kCache);
        if (p.which < 2) rope(y, ld, 0, rows, p.heads, l.head_dim);
        if (p.which > 0)
            write(layer, p.which == 1 ? y : nullptr, p.which == 2 ? y : nullptr, ld, 0, rows, p.head, p.heads);
    });
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

void DecoderPass::few_output(int32_t layer, int part, int parts, Ahead& ahead) {
    const Linear& w = m_.layers[layer].output;
    const Part strips(w.strips(), part, parts);
    if (strips.begin == strips.end) return;
    const float* attended = c_.attended.get<float>(0);
    ahead.fetch_more();
    few_quantize({&w}, attended, query_ld_, step_.tokens, w.k(), part);
    ahead.fetch_more();
    float* y = c_.x.get<float>(0) + strips.begin * kTileN;
    few_linear(Op::kOutput, w, attended, query_ld_, step_.tokens, c_.threads[part].few, {y, hidden_, y, hidden_},
               strips.begin, strips.end, account(part));
}

void DecoderPass::few_up(int32_t layer, int part, int parts, Ahead& ahead) {
    const TransformerLayer& l = m_.layers[layer];
    const Part strips(l.up.strips(), part, parts);
    if (strips.begin == strips.end) return;
    const int32_t rows = step_.tokens;
    DecoderThread& s = c_.threads[part];
    OpTimes* account = this->account(part);
    float* in = s.narrow.get<float>(0);
    ahead.fetch_more();
    norm(l.ffn_norm, c_.x.get<float>(0), rows, in, account);
    ahead.fetch_more();
    Forms forms{&l.up};
    if (m_.gated) forms.add({&l.gate});
    few_quantize(forms, in, hidden_, rows, m_.hidden, part);
    ahead.fetch_more();
    float* up = c_.shared.get<float>(0) + strips.begin * kTileN;
    const Act act = m_.gated ? Act::kIdentity : m_.activation;
    few_linear(Op::kUp, l.up, in, hidden_, rows, s.few, {up, wide_, nullptr, 0, act}, strips.begin, strips.end,
               account);
    if (!m_.gated) return;
    float* gate = up + rows * wide_;
    few_linear(Op::kUp, l.gate, in, hidden_, rows, s.few, {gate, wide_}, strips.begin, strips.end, account);
    const Timed timed(account, Op::kQuantize);
    k_.gated({.gate = gate,
              .ldg = wide_,
              .up = up,
              .ldu = wide_,
              .y = up,
              .ldy = wide_,
              .rows = rows,
              .width = (strips.end - strips.begin) * kTileN,
              .act = m_.activation});
}

void DecoderPass::few_down(int32_t layer, int part, int parts, Ahead& ahead) {
    const TransformerLayer& l = m_.layers[layer];
    const Part strips(l.down.strips(), part, parts);
    if (strips.begin == strips.end) return;
    const float* up = c_.shared.get<float>(0);
    if (m_.down_block) {
        float* own = c_.threads[part].wide.get<float>(0);
        spread(up, own, step_.tokens, l.intermediate);
        up = own;
    }
    ahead.fetch_more();
    few_quantize({&l.down}, up, wide_, step_.tokens, l.intermediate, part);
    ahead.fetch_more();
    float* y = c_.x.get<float>(0) + strips.begin * kTileN;
    few_linear(Op::kDown, l.down, up, wide_, step_.tokens, c_.threads[part].few, {y, hidden_, y, hidden_}, strips.begin,
               strips.end, account(part));
}

void DecoderPass::few_quantize(Forms forms, const float* x, int64_t ldx, int32_t rows, int32_t k, int part) {
    const Timed timed(account(part), Op::kQuantize);
    c_.threads[part].few.fill(k_, forms, x, ldx, rows, k);
}

}  // namespace approxrt
