// What a decoder is made of (approxrt/artifact/spec/decoder.py has the formulas).
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/common/transformer.h"

namespace approxrt {

// Two small linears that say nearly what the head would; words within `margin` of a token's largest logit then get
// those of the whole head, out of the embedding table (kind g8), which is not packed.
struct HeadPreview {
    Linear project, out;
    float margin = 0.0f;
};

struct DecoderModel : Transformer {
    int32_t max_positions;
    int32_t down_block = 0;  // of the Hadamard transform before `down`; 0: there is none
    // Added to words: learned positions [max_positions, hidden], or one row for all of them.
    const float* position = nullptr;
    bool learned = false;
    std::vector<float> position_rows;  // owns `position` unless that is the artifact's table
    std::vector<float> frequencies;    // [head_dim / 2] of rotary positions; empty: there are none
    Norm head_norm;
    Linear head;  // without weights where there is a preview
    std::optional<HeadPreview> preview;

    int32_t vocab() const { return words.vocab; }
    // Of a row of logits: whole strips.
    int64_t logits_ld() const { return round_up(vocab(), kTileN); }

    template <class Body>
    void each_linear(const Body& body) const {
        each_layer_linear(body);
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
