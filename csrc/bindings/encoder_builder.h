// An EncoderModel from an artifact's spec and tensors.
#pragma once

#include "engine/encoder/model.h"
#include "linear_builder.h"

namespace approxrt {

// Two steps: `build` looks at Python's objects and checks every array; `pack` re-lays the weights, which takes nearly
// all of the time, without Python and on all threads.
class Builder : public LinearBuilder {
  public:
    // Everything must outlive the builder; linears of `model` are written by `pack`, so it must stay where it is.
    Builder(const py::dict& config, const Tensors& tensors, const KernelTable& kernels, EncoderModel& model)
        : LinearBuilder(config, tensors, kernels), model_(model) {}

    void build() {
        EncoderModel& m = model_;
        m.hidden = number(config_, "hidden_size");
        m.eps = config_["layer_norm_eps"].cast<float>();
        m.activation = parse_act(config_["activation"].cast<std::string>());
        for (const auto id : config_["always_kept"].cast<py::list>()) m.always_kept.push_back(id.cast<int32_t>());
        m.embeddings = embeddings();
        // A removed block is x = norm(x + bias), and nobody else reads that x: the bias costs nothing where it is part
        // of what was added last to make x, the norm's before it. `added` is that.
        std::vector<float>* added = &m.embeddings.norm.beta;
        const bool project = m.embeddings.width != m.hidden;
        if (project) {
            const auto bias = floats("embeddings.projection.bias", m.hidden);
            projection_bias_.assign(bias.data(), bias.data() + m.hidden);
            added = &projection_bias_;
        }
        const py::list layers = config_["layers"];
        m.layers.resize(layers.size());
        for (size_t i = 0; i < layers.size(); ++i) {
            const py::dict l = layers[i];
            const int32_t heads = number(l, "num_heads"), dim = number(l, "head_dim"),
                          inner = number(l, "intermediate_size");
            const std::string at = "layers." + std::to_string(i) + ".";
            EncoderLayer& layer = m.layers[i];
            layer.num_heads = heads, layer.head_dim = dim, layer.intermediate = inner;
            layer.keep = number(l, "attention_keep"), layer.sign_from = number(l, "sign_from");
            layer.rest = l["attention_rest"].cast<bool>();
            if (heads) {
                expect(!layer.keep || (dim <= kMostSignDim && layer.sign_from > layer.keep),
                       at + ": sign matching needs heads of at most " + std::to_string(kMostSignDim) +
                           " elements and sign_from over attention_keep");
                later(layer.query, linear(at + "attention.query", heads * dim, m.hidden));
                later(layer.key, linear(at + "attention.key", heads * dim, m.hidden));
                later(layer.value, linear(at + "attention.value", heads * dim, m.hidden));
                later(layer.output, linear(at + "attention.output", m.hidden, heads * dim));
            } else {
                add(*added, at + "attention.output.bias");
            }
            layer.attention_norm = norm(at + "attention.norm", m.hidden);
            added = &layer.attention_norm.beta;
            if (inner) {
                later(layer.up, linear(at + "ffn.up", inner, m.hidden));
                later(layer.down, linear(at + "ffn.down", m.hidden, inner));
            } else {
                add(*added, at + "ffn.down.bias");
            }
            layer.ffn_norm = norm(at + "ffn.norm", m.hidden);
            added = &layer.ffn_norm.beta;
        }
        if (project)
            later(m.embeddings.projection.emplace(),
                  linear("embeddings.projection", m.hidden, m.embeddings.width, projection_bias_.data()));
        const std::string pooling = config_["pooling"].cast<std::string>();
        expect(pooling == "cls" || pooling == "mean", "unknown pooling '" + pooling + "'");
        m.head.pooling = pooling == "cls" ? Pooling::kCls : Pooling::kMean;
        int32_t features = m.hidden;
        if (const int32_t dense = number(config_, "dense_features")) {
            later(m.head.dense.emplace(), linear("head.dense", dense, m.hidden));
            m.head.dense_act = parse_act(config_["dense_activation"].cast<std::string>());
            features = dense;
        }
        if (const int32_t outputs = number(config_, "num_outputs"))
            later(m.head.out.emplace(), linear("head.out", outputs, features));
    }

  private:
    Norm norm(const std::string& name, int32_t width) const {
        auto gamma = floats(name + ".weight", width), beta = floats(name + ".bias", width);
        return {{gamma.data(), gamma.data() + width}, {beta.data(), beta.data() + width}};
    }

    // Rows of two bits, and of four for the words that are listed.
    void mixed_words(Embeddings& e) const {
        const std::string name = "embeddings.word.";
        const auto ids = typed<int32_t>(tensor(name + "wide"), 1, name + "wide");
        e.wide = static_cast<int32_t>(ids.shape(0));
        e.word_wide = ascending(ids, e.vocab, name + "wide");
        e.word_q4 = matrix<uint8_t>(name + "q4", e.wide, (e.width + 1) / 2).data();
        e.word_q2 = matrix<uint8_t>(name + "q2", e.vocab - e.wide, (e.width + 3) / 4).data();
        e.word_group_scale =
            matrix<uint8_t>(name + "group_scale", e.vocab, round_up(e.width, kGroupWeights) / kGroupWeights).data();
        e.word_scale = floats(name + "scale", e.vocab).data();
    }

    // int8 rows, which become float32: every token of a sequence adds one, and there are few.
    void wide_positions(Embeddings& e) const {
        const std::string name = "embeddings.position.";
        const auto q = matrix<int8_t>(name + "q", e.max_positions, e.width);
        const auto scale = floats(name + "scale", e.max_positions);
        auto rows = std::make_shared<std::vector<float>>(static_cast<size_t>(q.size()));
        for (int64_t p = 0; p < e.max_positions; ++p)
            for (int64_t i = 0; i < e.width; ++i)
                (*rows)[p * e.width + i] = static_cast<float>(q.data()[p * e.width + i]) * scale.data()[p];
        e.position = rows->data();
        e.own_positions = std::move(rows);
    }

    Embeddings embeddings() const {
        Embeddings e;
        e.vocab = number(config_, "vocab_size");
        e.width = number(config_, "embedding_size");
        e.max_positions = number(config_, "max_positions");
        e.types = number(config_, "type_vocab_size");
        has("embeddings.word.wide") ? mixed_words(e) : words(e);
        if (has("embeddings.position.q"))
            wide_positions(e);
        else
            e.position = matrix<float>("embeddings.position.weight", e.max_positions, e.width).data();
        if (e.types) e.token_type = matrix<float>("embeddings.token_type.weight", e.types, e.width).data();
        e.norm = norm("embeddings.norm", e.width);
        return e;
    }

    EncoderModel& model_;
    std::vector<float> projection_bias_;  // read by its packing
};

}  // namespace approxrt
