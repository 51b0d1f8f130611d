// From the last layer's output to logits: norm and head.
#include <algorithm>
#include <cstring>

#include "pass.h"

namespace approxrt {

// After run_blocks.
void DecoderPass::head() {
    const int32_t rows = step_.logit_rows();
    float* last = c_.last.get<float>(0);
    for (int32_t i = 0; i < rows; ++i) std::memcpy(last + i * hidden_, logit_row(i), sizeof(float) * hidden_);
    norm(m_.head_norm, last, rows, last, account(0));
    const int parts = pool_.threads();
    if (rows <= kGemvTokens && m_.preview) {
        pool_.run(parts, [&](int part, int) { few_project(last, rows, part, parts); });
        pool_.run(parts, [&](int part, int) { few_preview(rows, part, parts); });
        pool_.run(parts, [&](int part, int) { few_shortlist(rows, part, parts); });
        return pool_.run(parts, [&](int part, int) { few_refine(last, rows, part, parts); });
    }
    if (rows <= kGemvTokens) return pool_.run(parts, [&](int part, int) { few_logits(last, rows, part, parts); });
    for (int32_t begin = 0; begin < rows; begin += kHeadRows) {
        const int32_t count = std::min(kHeadRows, rows - begin);
        m_.preview ? preview_logits(last + begin * hidden_, begin, count)
                   : logits(last + begin * hidden_, begin, count);
    }
}

// Of rows begin .. of the step's logits.
void DecoderPass::logits(const float* x, int32_t begin, int32_t rows) {
    const Linear& w = m_.head;
    const int64_t ld = m_.logits_ld();
    const int parts = pool_.threads();
    if (!w.is_f32()) c_.last_quantized.fill(k_, {&w}, 0, x, hidden_, rows, m_.hidden);
    pool_.run(parts, [&](int part, int thread) {
        const Part strips(w.strips(), part, parts);
        if (strips.begin == strips.end) return;
        linear(Op::kHead, w, x, hidden_, rows, c_.last_quantized,
               {step_.logits + begin * ld + strips.begin * kTileN, ld}, strips.begin, strips.end, account(thread));
    });
}

void DecoderPass::few_head(int part, int parts) {
    const int32_t rows = step_.logit_rows();
    float* in = c_.threads[part].narrow.get<float>(0);
    for (int32_t i = 0; i < rows; ++i) norm(m_.head_norm, logit_row(i), 1, in + i * hidden_, account(part));
    few_logits(in, rows, part, parts);
}

void DecoderPass::few_logits(const float* x, int32_t rows, int part, int parts) {
    const Part strips(m_.head.strips(), part, parts);
    if (strips.begin == strips.end) return;
    few_quantize({&m_.head}, x, hidden_, rows, m_.hidden, part);
    few_linear(Op::kHead, m_.head, x, hidden_, rows, c_.threads[part].few,
               {step_.logits + strips.begin * kTileN, m_.logits_ld()}, strips.begin, strips.end, account(part));
}

// What the head would read, in the place of logits.
void DecoderPass::hidden() {
    for (int32_t i = 0; i < step_.tokens; ++i)
        norm(m_.head_norm, logit_row(i), 1, step_.logits + i * hidden_, account(0));
}

}  // namespace approxrt
