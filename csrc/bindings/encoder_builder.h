// An EncoderModel from an artifact's spec and tensors.
#pragma once

#include <cmath>

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
        angles();
        for (const auto step : config_["layer_order"].cast<py::list>()) m.layer_order.push_back(step.cast<int32_t>());
        layers(m, added, [&](TransformerLayer& layer, const py::dict&, const std::string& at) {
            relative_bias(layer, at + "attention.relative_bias");
            expect(!m.turns() || static_cast<size_t>(layer.head_dim) * m.embeddings.max_positions == 2 * m.cos.size(),
                   at + "head_dim is not twice the number of frequencies");
            expect(!layer.keep || (layer.head_dim <= kMostSignDim && layer.sign_from > layer.keep),
                   at + ": sign matching needs heads of at most " + std::to_string(kMostSignDim) +
                       " elements and sign_from over attention_keep");
        });
        for (const int32_t step : m.layer_order) {
            expect(step >= 0 && step < static_cast<int32_t>(m.layers.size()), "layer_order names no layer");
            expect(m.layers[step].num_heads && m.layers[step].intermediate, "layer_order with a removed block");
        }
        for (const auto name : config_["pooling"].cast<py::list>())
            m.head.pooling.push_back(parse_pooling(name.cast<std::string>()));
        expect(!m.head.pooling.empty(), "pooling is empty");
        projections(m.head, m.head.pooled_width(m.hidden));
        expect(m.head.pooling.size() == 1 || !number(config_, "num_outputs"), "a head of outputs reads one pooling");
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
    static Pooling parse_pooling(const std::string& name) {
        static const std::map<std::string, Pooling> names = {{"cls", Pooling::kCls},
                                                             {"mean", Pooling::kMean},
                                                             {"max", Pooling::kMax},
                                                             {"lasttoken", Pooling::kLast},
                                                             {"weightedmean", Pooling::kWeightedMean},
                                                             {"mean_sqrt_len_tokens", Pooling::kMeanSqrt}};
        const auto found = names.find(name);
        expect(found != names.end(), "unknown pooling '" + name + "'");
        return found->second;
    }

    void projections(Head& head, int32_t features) {
        const py::list given = config_["projections"];
        head.projections.resize(given.size());
        for (size_t i = 0; i < given.size(); ++i) {
            const py::dict d = given[i];
            const std::string name = "head.projections." + std::to_string(i);
            Projection& projection = head.projections[i];
            const int32_t width = number(d, "features");
            expect(has(name + ".weight"), name + " must be float32");
            later(projection.linear, linear(name, width, features));
            projection.act = parse_act(d["activation"].cast<std::string>());
            projection.normalize = d["normalize"].cast<bool>();
            features = width;
        }
    }

    void embeddings() const {
        Embeddings& e = model_.embeddings;
        const int32_t width = model_.words.width;
        e.max_positions = number(config_, "max_positions");
        e.types = number(config_, "type_vocab_size");
        if (turned())
            one_position(e, width);
        else if (has("embeddings.position.q"))
            wide_positions(e, width);
        else
            e.position = matrix<float>("embeddings.position.weight", e.max_positions, width).data();
        if (e.types) e.token_type = matrix<float>("embeddings.token_type.weight", e.types, width).data();
        e.norm = norm("embeddings.norm", width);
    }

    // [num_heads, 2 max_positions - 1], where the model has one.
    void relative_bias(TransformerLayer& layer, const std::string& name) const {
        if (!has(name)) return;
        expect(!layer.keep, name + " beside sign matching");
        const auto bias = matrix<float>(name, layer.num_heads, 2ll * model_.embeddings.max_positions - 1);
        layer.relative_bias.assign(bias.data(), bias.data() + bias.size());
    }

    bool turned() const { return typed<float>(config_["frequencies"], 1, "frequencies").shape(0) != 0; }

    // As transformers has them: a float32 product, then sine and cosine.
    void angles() const {
        const auto frequencies = typed<float>(config_["frequencies"], 1, "frequencies");
        const int64_t half = frequencies.shape(0), positions = model_.embeddings.max_positions;
        model_.cos.resize(positions * half);
        model_.sin.resize(positions * half);
        for (int64_t p = 0; p < positions; ++p)
            for (int64_t i = 0; i < half; ++i) {
                const float angle = static_cast<float>(p) * frequencies.data()[i];
                model_.cos[p * half + i] = static_cast<float>(std::cos(static_cast<double>(angle)));
                model_.sin[p * half + i] = static_cast<float>(std::sin(static_cast<double>(angle)));
            }
    }

    // Of models that turn queries and keys: zeros for all tokens.
    static void one_position(Embeddings& e, int64_t width) {
        e.own_positions = std::make_shared<const std::vector<float>>(static_cast<size_t>(width));
        e.position = e.own_positions->data();
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
