// A previewed head: near logits of all words from two small linears, then exact ones of those that matter.
//
//   y = project(h);  logits = out(y);  words with logits >= largest - margin: logits = the whole head's
//
// Reading the head's matrix is what a step of a few tokens spends a third of its time on; the preview reads a third of
// that and some thousand rows. All operations are per token, so that a token's logits do not depend on others.
//
// Words that are refined are found in every part's own logits but shared out anew: frequent words, which most often are
// near, have neighbouring ids in many vocabularies. One token's are shared out by their number; several tokens' by
// blocks of words, in turns, so that a row which more than one token asks for comes from memory once.
#include <algorithm>
#include <limits>

#include "pass.h"

namespace approxrt {
namespace {

// Words of which several tokens are refined one after the other: their rows stay in L2.
constexpr int32_t kSharedWords = 512;

}  // namespace

void DecoderPass::reserve_preview() {
    const int32_t rows = step_.logit_rows();
    const int64_t width = m_.preview->project.n_padded(), parts = pool_.threads();
    const bool many = rows > kGemvTokens;
    c_.preview.get<float>(std::min(rows, many ? kHeadRows : kGemvTokens) * width);
    if (many) c_.preview_quantized.reserve(k_, forms_, kHeadRows, width);
    c_.shortlist.get<int32_t>((many ? parts : rows) * m_.logits_ld());
    c_.found.get<int32_t>(parts * kGemvTokens);
    c_.largest.get<float>(parts * kGemvTokens);
    for (DecoderThread& t : c_.threads) t.exact.reserve(1, kGemvTokens, m_.hidden);
}

void DecoderPass::few_project(int part, int parts) {
    // Parts without a share normalise as well: they refine.
    float* in = c_.threads[part].narrow.get<float>(0);
    const int32_t rows = step_.logit_rows();
    for (int32_t i = 0; i < rows; ++i) norm(m_.head_norm, logit_row(i), 1, in + i * hidden_, account(part));
    few_project(in, rows, part, parts);
}

void DecoderPass::few_project(const float* x, int32_t rows, int part, int parts) {
    const Linear& w = m_.preview->project;
    const Part strips(w.strips(), part, parts);
    if (strips.begin == strips.end) return;
    few_quantize({&w}, x, hidden_, rows, m_.hidden, part);
    few_linear(Op::kHead, w, x, hidden_, rows, c_.threads[part].few,
               {c_.preview.get<float>(0) + strips.begin * kTileN, w.n_padded()}, strips.begin, strips.end,
               account(part));
}

void DecoderPass::few_preview(int32_t rows, int part, int parts) {
    const Linear& w = m_.preview->out;
    const Part strips(w.strips(), part, parts);
    const int64_t width = m_.preview->project.n_padded(), ld = m_.logits_ld();
    const int32_t begin = strips.begin * kTileN, end = std::min(strips.end * kTileN, m_.vocab());
    if (begin < end) {
        const float* y = c_.preview.data<float>();
        few_quantize({&w}, y, width, rows, w.k(), part);
        few_linear(Op::kHead, w, y, width, rows, c_.threads[part].few, {step_.logits + begin, ld}, strips.begin,
                   strips.end, account(part));
    }
    const Timed timed(account(part), Op::kHead);
    for (int32_t r = 0; r < rows; ++r) {
        int32_t none;
        k_.shortlist({.logits = step_.logits + r * ld + begin,
                      .count = std::max(end - begin, 0),
                      .threshold = std::numeric_limits<float>::infinity(),
                      .first = begin,
                      .largest = c_.largest.get<float>(0) + part * kGemvTokens + r,
                      .ids = c_.shortlist.get<int32_t>(0) + r * ld + begin,
                      .found = &none});
    }
}

void DecoderPass::few_shortlist(int32_t rows, int part, int parts) {
    const Timed timed(account(part), Op::kHead);
    const Part strips(m_.preview->out.strips(), part, parts);
    const int64_t ld = m_.logits_ld();
    const int32_t begin = strips.begin * kTileN, end = std::min(strips.end * kTileN, m_.vocab());
    for (int32_t r = 0; r < rows; ++r) {
        float largest = -std::numeric_limits<float>::infinity(), own;
        for (int p = 0; p < parts; ++p) largest = std::max(largest, c_.largest.data<float>()[p * kGemvTokens + r]);
        k_.shortlist({.logits = step_.logits + r * ld + begin,
                      .count = std::max(end - begin, 0),
                      .threshold = largest - m_.preview->margin,
                      .first = begin,
                      .largest = &own,
                      .ids = c_.shortlist.get<int32_t>(0) + r * ld + begin,
                      .found = c_.found.get<int32_t>(0) + part * kGemvTokens + r});
    }
}

void DecoderPass::few_refine(const float* x, int32_t rows, int part, int parts) {
    const Timed timed(account(part), Op::kHead);
    const int32_t* found = c_.found.data<int32_t>();
    const int64_t ld = m_.logits_ld();
    const int32_t strips = m_.preview->out.strips();
    GroupRows& tokens = c_.threads[part].exact;
    if (rows > 1) {
        for (int32_t r = 0; r < rows; ++r) tokens.fill(k_, r, x + r * hidden_, hidden_, 1, m_.hidden);
        for (int32_t block = part * kSharedWords; block < m_.vocab(); block += parts * kSharedWords)
            for (int32_t r = 0; r < rows; ++r)
                for (int p = 0; p < parts; ++p) {
                    const Part own(strips, p, parts);
                    if (own.begin * kTileN >= block + kSharedWords || own.end * kTileN <= block) continue;
                    const int32_t* ids = c_.shortlist.data<int32_t>() + r * ld + own.begin * kTileN;
                    const int32_t* end = ids + found[p * kGemvTokens + r];
                    const int32_t* from = std::lower_bound(ids, end, block);
                    const int32_t* to = std::lower_bound(from, end, block + kSharedWords);
                    if (from < to) refine(tokens, r, from, static_cast<int32_t>(to - from), step_.logits + r * ld);
                }
        return;
    }
    int32_t total = 0;
    for (int p = 0; p < parts; ++p) total += found[p * kGemvTokens];
    const Part share(total, part, parts);
    if (share.begin == share.end) return;
    tokens.fill(k_, 0, x, hidden_, 1, m_.hidden);
    // The parts' lists one behind the other.
    for (int p = 0, first = 0; p < parts; first += found[p * kGemvTokens], ++p) {
        const int32_t from = std::max(share.begin - first, 0), to = std::min(share.end - first, found[p * kGemvTokens]);
        const int32_t* ids = c_.shortlist.data<int32_t>() + Part(strips, p, parts).begin * kTileN;
        if (from < to) refine(tokens, 0, ids + from, to - from, step_.logits);
    }
}

void DecoderPass::refine(const GroupRows& tokens, int32_t token, const int32_t* ids, int32_t count,
                         float* logits) const {
    const char* panel = static_cast<const char*>(tokens.panels()) + GroupPanels{1}.bytes(token, m_.hidden);
    k_.word_logits({.q = m_.words.word_q,
                    .scale = m_.words.word_half_scale,
                    .k = m_.hidden,
                    .panel = panel,
                    .act_scale = tokens.scales()[token],
                    .ids = ids,
                    .count = count,
                    .logits = logits});
}

// Of rows begin .. of the step's logits, more than a few: linears by strips, the rest a row at a time.
void DecoderPass::preview_logits(const float* x, int32_t begin, int32_t rows) {
    const Linear &project = m_.preview->project, &out = m_.preview->out;
    const int parts = pool_.threads();
    const int64_t width = project.n_padded(), ld = m_.logits_ld();
    float *y = c_.preview.get<float>(0), *logits = step_.logits + begin * ld;
    const auto by_strips = [&](const Linear& w, const float* in, int64_t ldx, const QuantizedRows& quantized, float* to,
                               int64_t ldy) {
        pool_.run(parts, [&](int part, int thread) {
            const Part strips(w.strips(), part, parts);
            if (strips.begin == strips.end) return;
            linear(Op::kHead, w, in, ldx, rows, quantized, {to + strips.begin * kTileN, ldy}, strips.begin, strips.end,
                   account(thread));
        });
    };
    if (!project.is_f32()) c_.last_quantized.fill(k_, {&project}, 0, x, hidden_, rows, m_.hidden);
    by_strips(project, x, hidden_, c_.last_quantized, y, width);
    c_.preview_quantized.fill(k_, {&out}, 0, y, width, rows, out.k());
    by_strips(out, y, width, c_.preview_quantized, logits, ld);
    pool_.run(rows, [&](int row, int thread) {
        const Timed timed(account(thread), Op::kHead);
        int32_t* ids = c_.shortlist.get<int32_t>(0) + thread * ld;
        float largest, own;
        int32_t found;
        ShortlistArgs a{.logits = logits + row * ld,
                        .count = m_.vocab(),
                        .threshold = std::numeric_limits<float>::infinity(),
                        .first = 0,
                        .largest = &largest,
                        .ids = ids,
                        .found = &found};
        k_.shortlist(a);
        a.threshold = largest - m_.preview->margin, a.largest = &own;
        k_.shortlist(a);
        GroupRows& token = c_.threads[thread].exact;
        token.fill(k_, 0, x + row * hidden_, hidden_, 1, m_.hidden);
        refine(token, 0, ids, found, logits + row * ld);
    });
}

}  // namespace approxrt
