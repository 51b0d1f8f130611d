// An EncoderModel from an artifact's spec and tensors.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <map>

#include "../engine/model.h"
#include "../thread_pool.h"
#include "int4_arrays.h"

namespace approxrt {

using Tensors = std::map<std::string, py::object>;

// Two steps: `build` looks at Python's objects and checks every array; `pack` re-lays the weights, which takes nearly
// all of the time, without Python and on all threads.
class Builder {
  public:
    // Everything must outlive the builder; linears of `model` are written by `pack`, so it must stay where it is.
    Builder(const py::dict& config, const Tensors& tensors, const KernelTable& kernels, EncoderModel& model)
        : config_(config), tensors_(tensors), kernels_(kernels), model_(model) {}

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

    // Needs no Python. Throws what packing threw (std::bad_alloc).
    void pack(ThreadPool& pool) const {
        std::exception_ptr error;
        std::atomic<bool> failed{false};
        pool.run(static_cast<int>(jobs_.size()), [&](int i, int) {
            try {
                *jobs_[i].target = jobs_[i].pack();
            } catch (...) {
                if (!failed.exchange(true)) error = std::current_exception();
            }
        });
        if (failed) std::rethrow_exception(error);
    }

  private:
    using Pack = std::function<Linear()>;
    struct Job {
        Linear* target;
        Pack pack;
    };
    void later(Linear& target, Pack pack) { jobs_.push_back({&target, std::move(pack)}); }

    static int32_t number(const py::dict& d, const char* key) {
        const auto value = d[key].cast<int32_t>();
        expect(value >= 0, std::string(key) + " is negative");
        return value;
    }
    bool has(const std::string& name) const { return tensors_.count(name) != 0; }
    py::handle tensor(const std::string& name) const {
        const auto found = tensors_.find(name);
        expect(found != tensors_.end(), "tensor '" + name + "' is missing");
        return found->second;
    }
    Array<float> floats(const std::string& name, int64_t count) const {
        auto array = typed<float>(tensor(name), 1, name);
        expect(array.shape(0) == count, "tensor '" + name + "' needs " + std::to_string(count) + " values");
        return array;
    }
    template <class T>
    Array<T> matrix(const std::string& name, int64_t rows, int64_t columns) const {
        auto array = typed<T>(tensor(name), 2, name);
        expect(array.shape(0) == rows && array.shape(1) == columns,
               "tensor '" + name + "' must be [" + std::to_string(rows) + ", " + std::to_string(columns) + "]");
        return array;
    }

    Norm norm(const std::string& name, int32_t width) const {
        auto gamma = floats(name + ".weight", width), beta = floats(name + ".bias", width);
        return {{gamma.data(), gamma.data() + width}, {beta.data(), beta.data() + width}};
    }

    void add(std::vector<float>& sum, const std::string& name) const {
        const auto values = floats(name, static_cast<int64_t>(sum.size()));
        for (size_t i = 0; i < sum.size(); ++i) sum[i] += values.data()[i];
    }

    // Checks the arrays of one linear and returns what packs them: it holds pointers only, no Python objects.
    Pack linear(const std::string& name, int32_t n, int32_t k) const {
        return linear(name, n, k, floats(name + ".bias", n).data());
    }
    Pack linear(const std::string& name, int32_t n, int32_t k, const float* bias) const {
        const KernelTable& kernels = kernels_;
        if (has(name + ".weight")) {
            const float* weight = matrix<float>(name + ".weight", n, k).data();
            return [=] { return Linear(F32Weights(n, k, weight, bias)); };
        }
        const float* scale = floats(name + ".scale", n).data();
        if (has(name + ".q")) {
            const int8_t* q = matrix<int8_t>(name + ".q", n, k).data();
            return [=, &kernels] { return Linear(Int8Weights::from_dense(kernels, n, k, q, scale, bias)); };
        }
        if (has(name + ".q4")) {
            auto pack = int4_from_dense(kernels_, n, k, tensor(name + ".q4"), tensor(name + ".group_scale"), scale,
                                        bias, name + ".");
            return [pack] { return Linear(pack()); };
        }
        if (has(name + ".tiles4")) {
            auto pack = int4_from_bsr(kernels_, n, k, tensor(name + ".indptr"), tensor(name + ".indices"),
                                      tensor(name + ".tiles4"), tensor(name + ".group_scale"), scale, bias, name + ".");
            return [pack] { return Linear(pack()); };
        }
        const int64_t strips = round_up(n, kTileN) / kTileN, groups = round_up(k, kTileK) / kTileK;
        auto indptr = typed<int32_t>(tensor(name + ".indptr"), 1, name + ".indptr");
        auto indices = typed<uint16_t>(tensor(name + ".indices"), 1, name + ".indices");
        auto tiles = typed<int8_t>(tensor(name + ".tiles"), 3, name + ".tiles");
        expect(indptr.shape(0) == strips + 1 && indptr.at(0) == 0, name + ".indptr is malformed");
        for (int64_t g = 0; g < strips; ++g) expect(indptr.at(g) <= indptr.at(g + 1), name + ".indptr descends");
        const int64_t count = indptr.at(strips);
        expect(indices.shape(0) == count && tiles.shape(0) == count && tiles.shape(1) == kTileN &&
                   tiles.shape(2) == kTileK,
               name + ": tiles and indices do not fit indptr");
        const uint16_t* index = indices.data();
        bool inside = true;
        for (int64_t t = 0; t < count; ++t) inside &= index[t] < groups;
        expect(inside, name + ".indices is out of range");
        const int32_t* starts = indptr.data();
        const int8_t* tile = tiles.data();
        return [=, &kernels] { return Linear(Int8Weights::from_bsr(kernels, n, k, starts, index, tile, scale, bias)); };
    }

    Embeddings embeddings() const {
        Embeddings e;
        e.vocab = number(config_, "vocab_size");
        e.width = number(config_, "embedding_size");
        e.max_positions = number(config_, "max_positions");
        e.types = number(config_, "type_vocab_size");
        if (has("embeddings.word.q")) {
            e.word_q = matrix<int8_t>("embeddings.word.q", e.vocab, e.width).data();
            e.word_scale = floats("embeddings.word.scale", e.vocab).data();
        } else if (has("embeddings.word.q4")) {
            const int64_t groups = (e.width + kGroupWeights - 1) / kGroupWeights;
            e.word_q4 = matrix<uint8_t>("embeddings.word.q4", e.vocab, (e.width + 1) / 2).data();
            e.word_group_scale = matrix<uint8_t>("embeddings.word.group_scale", e.vocab, groups).data();
            e.word_scale = floats("embeddings.word.scale", e.vocab).data();
        } else {
            e.word = matrix<float>("embeddings.word.weight", e.vocab, e.width).data();
        }
        e.position = matrix<float>("embeddings.position.weight", e.max_positions, e.width).data();
        if (e.types) e.token_type = matrix<float>("embeddings.token_type.weight", e.types, e.width).data();
        e.norm = norm("embeddings.norm", e.width);
        return e;
    }

    const py::dict& config_;
    const Tensors& tensors_;
    const KernelTable& kernels_;
    EncoderModel& model_;
    std::vector<Job> jobs_;
    std::vector<float> projection_bias_;  // read by its packing
};

}  // namespace approxrt
