// An EncoderModel from an artifact's spec and tensors.
#pragma once

#include "engine/encoder/model.h"
#include "transformer_builder.h"

namespace approxrt {

class EncoderBuilder : public TransformerBuilder {
  public:
    // Everything must outlive the builder; linears of `model` are written by `pack`, so it must stay where it is.
    EncoderBuilder(const py::dict& config, const Tensors& tensors, const KernelTable& kernels, EncoderModel& model)
        : TransformerBuilder(config, tensors, kernels), model_(model) {}

    void build() {
        EncoderModel& m = model_;
        start(m, false);
        for (const auto id : config_["always_kept"].cast<py::list>()) m.always_kept.push_back(id.cast<int32_t>());
        embeddings();
        std::vector<float>* added = &m.embeddings.norm.beta;
        if (m.words.width != m.hidden) {
            const auto bias = floats("embeddings.projection.bias", m.hidden);
            added = &biases_.emplace_back(bias.data(), bias.data() + m.hidden);
            later(m.embeddings.projection.emplace(),
                  linear("embeddings.projection", m.hidden, m.words.width, added->data()));
        }
        layers(m, added, [](const TransformerLayer& layer, const py::dict&, const std::string& at) {
            expect(!layer.keep || (layer.head_dim <= kMostSignDim && layer.sign_from > layer.keep),
                   at + ": sign matching needs heads of at most " + std::to_string(kMostSignDim) +
                       " elements and sign_from over attention_keep");
        });
        const std::string pooling = config_["pooling"].cast<std::string>();
        expect(pooling == "cls" || pooling == "mean", "unknown pooling '" + pooling + "'");
        m.head.pooling = pooling == "cls" ? Pooling::kCls : Pooling::kMean;
        m.head.per_token = config_["per_token"].cast<bool>();
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
    void embeddings() const {
        Embeddings& e = model_.embeddings;
        const int32_t width = model_.words.width;
        e.max_positions = number(config_, "max_positions");
        e.types = number(config_, "type_vocab_size");
        if (has("embeddings.position.q"))
            wide_positions(e, width);
        else
            e.position = matrix<float>("embeddings.position.weight", e.max_positions, width).data();
        if (e.types) e.token_type = matrix<float>("embeddings.token_type.weight", e.types, width).data();
        e.norm = norm("embeddings.norm", width);
    }

    // int8 rows, which become float32: every token of a sequence adds one, and there are few.
    void wide_positions(Embeddings& e, int64_t width) const {
        const std::string name = "embeddings.position.";
        const auto q = matrix<int8_t>(name + "q", e.max_positions, width);
        const auto scale = floats(name + "scale", e.max_positions);
        auto rows = std::make_shared<std::vector<float>>(static_cast<size_t>(q.size()));
        for (int64_t p = 0; p < e.max_positions; ++p)
            for (int64_t i = 0; i < width; ++i)
                (*rows)[p * width + i] = static_cast<float>(q.data()[p * width + i]) * scale.data()[p];
        e.position = rows->data();
        e.own_positions = std::move(rows);
    }

    EncoderModel& model_;
};

}  // namespace approxrt
