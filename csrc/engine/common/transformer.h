// What encoders and decoders are made of alike.
#pragma once

#include <cstdint>
#include <vector>

#include "weights.h"

namespace approxrt {

// A layer norm; without beta, an RMS norm.
struct Norm {
    std::vector<float> gamma, beta;

    void run(const KernelTable& kernels, float eps, const float* x, int64_t ldx, int32_t rows, float* y,
             int64_t ldy) const {
        const auto width = static_cast<int32_t>(gamma.size());
        if (beta.empty()) {
            kernels.rms_norm({.x = x,
                              .ldx = ldx,
                              .rows = rows,
                              .width = width,
                              .gamma = gamma.data(),
                              .eps = eps,
                              .y = y,
                              .ldy = ldy});
        } else {
            kernels.layer_norm({.x = x,
                                .ldx = ldx,
                                .rows = rows,
                                .width = width,
                                .gamma = gamma.data(),
                                .beta = beta.data(),
                                .eps = eps,
                                .y = y,
                                .ldy = ldy});
        }
    }
};

// Rows of words in one of the kinds of EmbeddingArgs, which has the meaning of the fields. They stay where the caller
// has them (a memory map): the owner keeps them alive.
struct WordTable {
    int32_t vocab, width;
    const float* word = nullptr;
    const int8_t* word_q = nullptr;
    const uint8_t* word_q4 = nullptr;
    const uint8_t* word_group_scale = nullptr;
    const float* word_scale = nullptr;
    const uint16_t* word_half_scale = nullptr;
    const uint16_t* word_half_offset = nullptr;
    const uint8_t* word_q2 = nullptr;
    const int32_t* word_wide = nullptr;
    int32_t wide = 0;

    // The fields of a lookup that are the table's.
    EmbeddingArgs args() const {
        EmbeddingArgs a{};
        a.word = word;
        a.word_q = word_q;
        a.word_scale = word_scale;
        a.width = width;
        a.word_q4 = word_q4;
        a.word_group_scale = word_group_scale;
        a.word_half_scale = word_half_scale;
        a.word_half_offset = word_half_offset;
        a.word_q2 = word_q2;
        a.word_wide = word_wide;
        a.wide = wide;
        return a;
    }
};

// Two blocks with a norm each: attention (removed: num_heads is 0) and feed forward (removed: intermediate is 0). A
// removed block has no linears; its bias is in what was added last to what it read (bindings/transformer_builder.h).
struct TransformerLayer {
    int32_t num_heads, num_kv_heads, head_dim, intermediate;
    Linear query, key, value, output;
    Linear gate, up, down;          // gate: where the model is gated
    Norm attention_norm, ffn_norm;  // where norms come first, a removed block has none
    // Sign matching where there are `sign_from` keys or more; keep 0: nowhere. A query attends to its `keep` best keys,
    // an encoder's also to EncoderModel::always_kept, a decoder's to the first and the last `window`. With `rest` the
    // others stand as their mean (args.h, SignAttentionArgs).
    int32_t keep = 0, sign_from = 0, window = 1, signs = 0;
    bool rest = false;
    // [num_heads][2 max_positions - 1]: what attention of query i to key j is biased with, over j - i from
    // 1 - max_positions on; empty: with nothing.
    std::vector<float> relative_bias;
    std::vector<float> rotation, centre;  // [kv_heads][head_dim][signs], [kv_heads][signs] in whole strips; or empty

    int32_t group() const { return num_heads / num_kv_heads; }
};

struct Transformer {
    int32_t hidden;
    float eps;
    bool pre_norm;       // y = x + block(norm(x)); else y = norm(x + block(x))
    bool gated = false;  // feed forward is down(act(gate(x)) * up(x)); else down(act(up(x)))
    Act activation;
    WordTable words;
    std::vector<TransformerLayer> layers;

    template <class Body>
    void each_layer_linear(const Body& body) const {
        for (const TransformerLayer& l : layers) {
            if (l.num_heads)
                for (const Linear* w : {&l.query, &l.key, &l.value, &l.output}) body(*w);
            if (!l.intermediate) continue;
            if (gated) body(l.gate);
            for (const Linear* w : {&l.up, &l.down}) body(*w);
        }
    }
};

// Every form that any linear of a model reads.
template <class Model>
Forms forms_of(const Model& model) {
    Forms forms;
    model.each_linear([&](const Linear& w) { forms.add({&w}); });
    return forms;
}

// Bytes of packed weights.
template <class Model>
size_t weight_bytes_of(const Model& model) {
    size_t sum = 0;
    model.each_linear([&](const Linear& w) { sum += w.bytes(); });
    return sum;
}

}  // namespace approxrt
