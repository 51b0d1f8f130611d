// What an encoder is made of, and what it is asked.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/common/transformer.h"
#include "pooling.h"

namespace approxrt {

// What is added to words. Tables stay where the caller has them, as the words do.
struct Embeddings {
    int32_t max_positions, types;
    const float* position = nullptr;
    const float* token_type = nullptr;
    std::shared_ptr<const std::vector<float>> own_positions;  // what `position` points to, if it was stored otherwise
    Norm norm;
    std::optional<Linear> projection;
};

// A linear that pooled states go through, in float32: y = act(linear(x)), x of length 1 before it if `normalize`.
struct Projection {
    Linear linear;
    Act act;
    bool normalize;
};

struct Head {
    std::vector<Pooling> pooling;         // one after another in a pooled state
    std::vector<Projection> projections;  // of an embedder's pooled states, in order
    bool per_token = false;               // logits are of every token's hidden state, not of the pooled one
    Act dense_act = Act::kTanh;
    std::optional<Linear> dense, out;

    // Nothing but first tokens' states is read.
    bool first_only() const { return pooling.size() == 1 && pooling[0] == Pooling::kCls; }
    int32_t pooled_width(int32_t hidden) const { return hidden * static_cast<int32_t>(pooling.size()); }
};

struct EncoderModel : Transformer {
    std::vector<int32_t> always_kept;  // token ids whose keys sign matching keeps, as it does the first token's
    // Which layer each step runs; empty: every layer once. A layer that is run several times has no removed block.
    std::vector<int32_t> layer_order;
    // [max_positions][head_dim / 2]: what queries and keys are turned by; empty: they are not. Embeddings then have one
    // position for all tokens.
    std::vector<float> cos, sin;
    Embeddings embeddings;
    Head head;

    bool turns() const { return !cos.empty(); }

    // Every form that any linear reads. Set by `Encoder` once, when all are packed.
    Forms forms;

    template <class Body>
    void each_linear(const Body& body) const {
        each_layer_linear(body);
        for (const auto* w : {&embeddings.projection, &head.dense, &head.out})
            if (*w) body(**w);
        for (const Projection& projection : head.projections) body(projection.linear);
    }

    // Blocks in the order of execution: 2 i is step i's attention, 2 i + 1 its feed forward.
    int32_t blocks() const {
        return 2 * static_cast<int32_t>(layer_order.empty() ? layers.size() : layer_order.size());
    }
    static bool is_attention(int32_t block) { return block % 2 == 0; }
    const TransformerLayer& layer(int32_t block) const {
        return layers[layer_order.empty() ? block / 2 : layer_order[block / 2]];
    }
    bool removed(int32_t block) const {
        return (is_attention(block) ? layer(block).num_heads : layer(block).intermediate) == 0;
    }
    const Norm& norm(int32_t block) const {
        return is_attention(block) ? layer(block).attention_norm : layer(block).ffn_norm;
    }
    // The forms in which a block's input is read; none of removed blocks and behind the last.
    Forms input_forms(int32_t block) const {
        if (block == blocks() || removed(block)) return {};
        const TransformerLayer& l = layer(block);
        if (is_attention(block)) return {&l.query, &l.key, &l.value};
        return gated ? Forms{&l.gate, &l.up} : Forms{&l.up};
    }
    // The first block, or attention, from `block` on that is not removed; blocks() where there is none.
    int32_t next_block(int32_t block) const {
        while (block < blocks() && removed(block)) ++block;
        return block;
    }
    int32_t next_attention(int32_t block) const {
        while (block < blocks() && (!is_attention(block) || removed(block))) ++block;
        return block;
    }
};

// What a forward pass returns.
enum class Output {
    kHidden,  // [tokens, hidden]: the last hidden states
    kPooled,  // [sequences, hidden]; of several poolings or with projections, the width of these
    kLogits,  // [sequences, outputs], or [tokens, outputs] of a head per token
};

// tokens of all sequences one after the other; sequence i is cu_seqlens[i] .. cu_seqlens[i+1]-1.
struct Batch {
    const int32_t* ids;
    const int32_t* types;  // null: all 0
    const int32_t* cu_seqlens;
    int32_t sequences;

    int32_t tokens() const { return cu_seqlens[sequences]; }
};

}  // namespace approxrt
