// What a decoder is made of (approxrt/artifact/spec/decoder.py has the formulas).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/common/weights.h"

namespace approxrt {

struct PreNorm {
    std::vector<float> gamma, beta;  // beta: layer norms only
};

// Two blocks, each with the norm before it: attention (removed: num_heads is 0) and feed forward (removed: intermediate
// is 0). A removed block has nothing here; its bias is in what was added to x before (decoder_builder.h).
struct DecoderLayer {
    int32_t num_heads, num_kv_heads, head_dim, intermediate;
    Linear query, key, value, output, gate, up, down;
    PreNorm attention_norm, ffn_norm;
    // A query that sees at least `sign_from` keys matches signs: it attends to its `keep` best, the first, and the last
    // `window`; keep is 0: to all. With `rest` the others stand as their mean (decoder_args.h).
    int32_t keep = 0, sign_from = 0, window = 1, signs = 0;
    bool rest = false;
    std::vector<float> rotation, centre;  // [kv_heads][head_dim][signs], [kv_heads][signs] in whole strips; or empty

    int32_t group() const { return num_heads / num_kv_heads; }
};

// Two small linears that say nearly what the head would; words within `margin` of a token's largest logit then get
// those of the whole head, out of the word table (kind g8), which is not packed.
struct HeadPreview {
    Linear project, out;
    float margin = 0.0f;
};

struct DecoderModel {
    int32_t hidden, vocab, max_positions;
    float eps;
    bool rms, gated;
    Act activation;
    int32_t down_block = 0;  // of the Hadamard transform before `down`; 0: there is none
    // Tables stay where the caller has them (a memory map): the owner keeps them alive.
    int32_t width;  // of the word table: hidden
    const float* word = nullptr;
    const int8_t* word_q = nullptr;
    const uint8_t* word_q4 = nullptr;
    const uint8_t* word_group_scale = nullptr;
    const float* word_scale = nullptr;
    const uint16_t* word_half_scale = nullptr;
    const uint16_t* word_half_offset = nullptr;
    const uint8_t* word_q2 = nullptr;
    // Added to words: learned positions [max_positions, hidden], or one row for all of them.
    const float* position = nullptr;
    bool learned = false;
    std::vector<float> position_rows;  // owns `position` unless that is the artifact's table
    std::vector<float> frequencies;    // [head_dim / 2] of rotary positions; empty: there are none
    std::vector<DecoderLayer> layers;
    PreNorm head_norm;
    Linear head;  // without weights where there is a preview
    std::optional<HeadPreview> preview;

    // Of a row of logits: whole strips.
    int64_t logits_ld() const { return round_up(vocab, kTileN); }

    template <class Body>
    void each_linear(const Body& body) const {
        for (const DecoderLayer& l : layers) {
            if (l.num_heads)
                for (const Linear* w : {&l.query, &l.key, &l.value, &l.output}) body(*w);
            if (l.intermediate) {
                if (gated) body(l.gate);
                for (const Linear* w : {&l.up, &l.down}) body(*w);
            }
        }
        if (!preview) return body(head);
        body(preview->project);
        body(preview->out);
    }

    // The first layer with attention from `layer` on; layers.size() where there is none.
    int32_t next_attention(int32_t layer) const {
        while (layer < static_cast<int32_t>(layers.size()) && !layers[layer].num_heads) ++layer;
        return layer;
    }
};

}  // namespace approxrt
