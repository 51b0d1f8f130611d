// What of encoders and decoders is built alike: words, norms, layers.
//
// Two steps: `build` of a derived class looks at Python's objects and checks every array; `pack` re-lays the weights,
// which takes nearly all of the time, without Python and on all threads.
#pragma once

#include <list>

#include "engine/common/transformer.h"
#include "linear_builder.h"

namespace approxrt {

class TransformerBuilder : public LinearBuilder {
  protected:
    using LinearBuilder::LinearBuilder;

    // Sizes and words.
    void start(Transformer& m, bool pre_norm) const {
        m.pre_norm = pre_norm;
        m.hidden = number(config_, "hidden_size");
        m.eps = config_["norm_eps"].cast<float>();
        m.activation = parse_act(config_["activation"].cast<std::string>());
        m.gated = config_["gated"].cast<bool>();
        m.words.vocab = number(config_, "vocab_size");
        m.words.width = number(config_, "embedding_size");
        words(m.words);
    }

    Norm norm(const std::string& name, int32_t width) const {
        Norm n;
        const auto gamma = floats(name + ".weight", width);
        n.gamma.assign(gamma.data(), gamma.data() + width);
        if (config_["norm"].cast<std::string>() == "rms") return n;
        const auto beta = floats(name + ".bias", width);
        n.beta.assign(beta.data(), beta.data() + width);
        return n;
    }

    // A removed block is x + bias, with the norm behind it or before it. The bias costs nothing where it is part of
    // what was added to x last: the bias of a linear, or of a norm that ends a block. `added` is that; it begins as
    // what was added before all layers. signs(layer, its dict, its name) reads what matches signs.
    template <class Signs>
    void layers(Transformer& m, std::vector<float>* added, const Signs& signs) {
        const py::list layers = config_["layers"];
        m.layers.resize(layers.size());
        for (size_t i = 0; i < layers.size(); ++i) {
            const py::dict l = layers[i];
            const std::string at = "layers." + std::to_string(i) + ".";
            TransformerLayer& layer = m.layers[i];
            layer.num_heads = number(l, "num_heads"), layer.num_kv_heads = number(l, "num_kv_heads");
            layer.head_dim = number(l, "head_dim"), layer.intermediate = number(l, "intermediate_size");
            // The last linear of a block and its norm; a removed block's norm stays where norms end blocks.
            const auto block = [&](bool there, Linear& last, Norm& own, const std::string& linear_name, int32_t inputs,
                                   const std::string& norm_name) {
                if (there) {
                    const auto values = floats(linear_name + ".bias", m.hidden);
                    biases_.emplace_back(values.data(), values.data() + m.hidden);
                    added = &biases_.back();
                    later(last, linear(linear_name, m.hidden, inputs, added->data()));
                } else {
                    add(*added, linear_name + ".bias");
                }
                if (there || !m.pre_norm) own = norm(norm_name, m.hidden);
                if (!m.pre_norm) added = &own.beta;
            };
            const int32_t wide = layer.num_heads * layer.head_dim, narrow = layer.num_kv_heads * layer.head_dim;
            if (layer.num_heads) {
                expect(layer.num_kv_heads && layer.num_heads % layer.num_kv_heads == 0,
                       at + "num_heads is no multiple of num_kv_heads");
                layer.keep = number(l, "attention_keep"), layer.sign_from = number(l, "sign_from");
                layer.rest = l["attention_rest"].cast<bool>();
                signs(layer, l, at);
                later(layer.query, linear(at + "attention.query", wide, m.hidden));
                later(layer.key, linear(at + "attention.key", narrow, m.hidden));
                later(layer.value, linear(at + "attention.value", narrow, m.hidden));
            }
            block(layer.num_heads, layer.output, layer.attention_norm, at + "attention.output", wide,
                  at + "attention.norm");
            if (layer.intermediate) {
                if (m.gated) later(layer.gate, linear(at + "ffn.gate", layer.intermediate, m.hidden));
                later(layer.up, linear(at + "ffn.up", layer.intermediate, m.hidden));
            }
            block(layer.intermediate, layer.down, layer.ffn_norm, at + "ffn.down", layer.intermediate, at + "ffn.norm");
        }
    }

    // Read by packing: they may be added to until then.
    std::list<std::vector<float>> biases_;

  private:
    // The embedding table of e.vocab rows of e.width, read in place.
    void words(WordTable& e) const {
        const std::string name = "embeddings.word.";
        if (has(name + "wide")) return mixed_words(e);
        const bool by_group = has(name + "group_scale") && !has(name + "scale");
        if (by_group) e.word_half_scale = halves(tensor(name + "group_scale"), e.vocab, e.width, name + "group_scale");
        if (has(name + "q")) {
            e.word_q = matrix<int8_t>(name + "q", e.vocab, e.width).data();
            if (!by_group) e.word_scale = floats(name + "scale", e.vocab).data();
        } else if (by_group) {
            e.word_q4 = matrix<uint8_t>(name + "q4", e.vocab, (e.width + 1) / 2).data();
            if (has(name + "q2")) {
                e.word_q2 = matrix<uint8_t>(name + "q2", e.vocab, (e.width + 3) / 4).data();
                return;
            }
            e.word_half_offset = halves(tensor(name + "group_offset"), e.vocab, e.width, name + "group_offset");
        } else if (has(name + "q4")) {
            const int64_t groups = (e.width + kGroupWeights - 1) / kGroupWeights;
            e.word_q4 = matrix<uint8_t>(name + "q4", e.vocab, (e.width + 1) / 2).data();
            e.word_group_scale = matrix<uint8_t>(name + "group_scale", e.vocab, groups).data();
            e.word_scale = floats(name + "scale", e.vocab).data();
        } else {
            e.word = matrix<float>(name + "weight", e.vocab, e.width).data();
        }
    }

    // Rows of two bits, and of four for the words that are listed.
    void mixed_words(WordTable& e) const {
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
};

}  // namespace approxrt
