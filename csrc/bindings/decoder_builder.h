// A DecoderModel from an artifact's spec and tensors.
#pragma once

#include "engine/decoder/model.h"
#include "transformer_builder.h"

namespace approxrt {

class DecoderBuilder : public TransformerBuilder {
  public:
    DecoderBuilder(const py::dict& config, const Tensors& tensors, const KernelTable& kernels, DecoderModel& model)
        : TransformerBuilder(config, tensors, kernels), model_(model) {}

    void build() {
        DecoderModel& m = model_;
        start(m, true);
        m.max_positions = number(config_, "max_positions");
        m.down_block = number(config_, "down_block");
        const int32_t block = m.down_block;
        expect(block == 0 || (block >= kTileN && block <= kLargestHadamard && (block & (block - 1)) == 0),
               "down_block must be 0 or a power of 2 from 16 to 128");
        m.learned = config_["positions"].cast<std::string>() == "learned";
        const auto frequencies = typed<float>(config_["frequencies"], 1, "frequencies");
        m.frequencies.assign(frequencies.data(), frequencies.data() + frequencies.shape(0));
        std::vector<float> before(m.hidden, 0.0f);  // the positions, where they are the same row for all
        layers(m, &before, [&](TransformerLayer& layer, const py::dict& l, const std::string& at) {
            expect(m.frequencies.empty() || layer.head_dim == 2 * static_cast<int32_t>(m.frequencies.size()),
                   at + "head_dim does not fit the rotary positions");
            signs(layer, l, at);
        });
        for (size_t i = 0; i < m.layers.size(); ++i)
            expect(block == 0 || m.layers[i].intermediate % block == 0,
                   "layers." + std::to_string(i) + ".intermediate_size is no multiple of down_block");
        positions(before);
        m.head_norm = norm("head.norm", m.hidden);
        if (preview(m)) return;
        if (config_["tied_embeddings"].cast<bool>()) {
            biases_.emplace_back(m.vocab(), 0.0f);
            later(m.head, linear("embeddings.word", m.vocab(), m.hidden, biases_.back().data()));
        } else {
            later(m.head, linear("head.out", m.vocab(), m.hidden));
        }
    }

  private:
    // Whether the head is previewed: then the embedding table is read where it lies.
    bool preview(DecoderModel& m) {
        const py::object any = config_["head_preview"];
        if (any.is_none()) return false;
        const auto given = any.cast<py::dict>();
        const int32_t width = number(given, "width");
        m.preview.emplace();
        m.preview->margin = given["margin"].cast<float>();
        expect(m.words.word_q && m.words.word_half_scale && config_["tied_embeddings"].cast<bool>(),
               "head_preview needs a tied embedding table of kind g8");
        expect(m.preview->margin >= 0.0f && width > 0, "head_preview: margin and width must not be negative");
        later(m.preview->project, linear("head.preview.project", width, m.hidden));
        later(m.preview->out, linear("head.preview.out", m.vocab(), width));
        return true;
    }

    void signs(TransformerLayer& layer, const py::dict& l, const std::string& at) {
        if (!layer.keep) return;
        layer.window = number(l, "sign_window");
        const int32_t codes = number(l, "sign_codes"), dim = layer.head_dim;
        layer.signs = codes ? codes : dim;
        expect(layer.signs <= kMostSignDim && layer.keep > 0 && layer.window > 0 && layer.sign_from > layer.keep &&
                   layer.sign_from >= kSumBlock,
               at + "signs: at most " + std::to_string(kMostSignDim) +
                   " of them, keep and window positive, sign_from over keep and at least 64");
        if (!codes) return;
        const auto r = typed<float>(tensor(at + "attention.sign.rotation"), 3, "sign.rotation");
        const auto m = typed<float>(tensor(at + "attention.sign.centre"), 2, "sign.centre");
        const int64_t heads = layer.num_kv_heads, ld = round_up(codes, 16);
        expect(
            r.shape(0) == heads && r.shape(1) == codes && r.shape(2) == dim && m.shape(0) == heads && m.shape(1) == dim,
            at + "attention.sign: its tensors do not fit");
        layer.rotation.assign(heads * dim * ld, 0.0f);
        layer.centre.assign(heads * ld, 0.0f);
        for (int64_t h = 0; h < heads; ++h)
            for (int64_t o = 0; o < codes; ++o) {
                double turned = 0.0;
                for (int64_t c = 0; c < dim; ++c) {
                    layer.rotation[(h * dim + c) * ld + o] = r.at(h, o, c);
                    turned += static_cast<double>(r.at(h, o, c)) * m.at(h, c);
                }
                layer.centre[h * ld + o] = static_cast<float>(turned);
            }
    }

    void positions(const std::vector<float>& before) {
        DecoderModel& m = model_;
        if (!m.learned) {
            m.position_rows = before;
            m.position = m.position_rows.data();
            return;
        }
        const auto table = matrix<float>("embeddings.position.weight", m.max_positions, m.hidden);
        m.position = table.data();
        bool any = false;
        for (const float x : before) any |= x != 0.0f;
        if (!any) return;
        m.position_rows.assign(table.data(), table.data() + table.size());
        for (int64_t i = 0; i < table.size(); ++i) m.position_rows[i] += before[i % m.hidden];
        m.position = m.position_rows.data();
    }

    DecoderModel& model_;
};

}  // namespace approxrt
