// What an encoder is made of, and what it is asked.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "weights.h"

namespace approxrt {

enum class Pooling { kCls, kMean };

struct Norm {
    std::vector<float> gamma, beta;
};

struct EncoderLayer {
    int32_t num_heads, head_dim, intermediate;
    Linear query, key, value, output, up, down;
    Norm attention_norm, ffn_norm;

    // The forms in which the layer's input is read.
    Forms input_forms() const { return {&query, &key, &value}; }
};

// Tables stay where the caller has them (a memory map): the owner keeps them alive.
struct Embeddings {
    int32_t vocab, width, max_positions, types;
    const float* word = nullptr;
    const int8_t* word_q = nullptr;
    const uint8_t* word_q4 = nullptr;
    const uint8_t* word_group_scale = nullptr;
    const float* word_scale = nullptr;
    const float* position = nullptr;
    const float* token_type = nullptr;
    Norm norm;
    std::optional<Linear> projection;
};

struct Head {
    Pooling pooling;
    Act dense_act = Act::kTanh;
    std::optional<Linear> dense, out;
};

struct EncoderModel {
    int32_t hidden;
    float eps;
    Act activation;
    Embeddings embeddings;
    std::vector<EncoderLayer> layers;
    Head head;

    template <class Body>
    void each_linear(const Body& body) const {
        for (const EncoderLayer& l : layers)
            for (const Linear* w : {&l.query, &l.key, &l.value, &l.output, &l.up, &l.down}) body(*w);
        for (const auto* w : {&embeddings.projection, &head.dense, &head.out})
            if (*w) body(**w);
    }
    // Every form that any linear reads.
    Forms forms() const {
        Forms all;
        each_linear([&](const Linear& w) { all.add({&w}); });
        return all;
    }
};

// What a forward pass returns.
enum class Output {
    kHidden,  // [tokens, hidden]: the last hidden states
    kPooled,  // [sequences, hidden]
    kLogits,  // [sequences, outputs]
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
