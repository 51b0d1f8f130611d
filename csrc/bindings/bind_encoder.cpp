// The encoder for Python: built from an artifact's spec and tensors, called with packed tokens.
#include <map>

#include <pybind11/stl.h>

#include "../engine/encoder.h"
#include "arrays.h"
#include "int4_arrays.h"

namespace approxrt {
namespace {

using Tensors = std::map<std::string, py::object>;

Act parse_act(const std::string& name) {
    static const std::map<std::string, Act> acts = {{"identity", Act::kIdentity},
                                                    {"gelu", Act::kGelu},
                                                    {"gelu_tanh", Act::kGeluTanh},
                                                    {"relu", Act::kRelu},
                                                    {"tanh", Act::kTanh}};
    const auto found = acts.find(name);
    expect(found != acts.end(), "unknown activation '" + name + "'");
    return found->second;
}

class Builder {
  public:
    Builder(const py::dict& config, const Tensors& tensors, const KernelTable& kernels)
        : config_(config), tensors_(tensors), kernels_(kernels) {}

    EncoderModel build() {
        EncoderModel m;
        m.hidden = number(config_, "hidden_size");
        m.eps = config_["layer_norm_eps"].cast<float>();
        m.activation = parse_act(config_["activation"].cast<std::string>());
        m.embeddings = embeddings();
        if (m.embeddings.width != m.hidden)
            m.embeddings.projection = linear("embeddings.projection", m.hidden, m.embeddings.width);
        const py::list layers = config_["layers"];
        for (size_t i = 0; i < layers.size(); ++i) {
            const py::dict l = layers[i];
            const int32_t heads = number(l, "num_heads"), dim = number(l, "head_dim"),
                          inner = number(l, "intermediate_size");
            const std::string at = "layers." + std::to_string(i) + ".";
            m.layers.push_back({heads, dim, inner, linear(at + "attention.query", heads * dim, m.hidden),
                                linear(at + "attention.key", heads * dim, m.hidden),
                                linear(at + "attention.value", heads * dim, m.hidden),
                                linear(at + "attention.output", m.hidden, heads * dim),
                                linear(at + "ffn.up", inner, m.hidden), linear(at + "ffn.down", m.hidden, inner),
                                norm(at + "attention.norm", m.hidden), norm(at + "ffn.norm", m.hidden)});
        }
        const std::string pooling = config_["pooling"].cast<std::string>();
        expect(pooling == "cls" || pooling == "mean", "unknown pooling '" + pooling + "'");
        m.head.pooling = pooling == "cls" ? Pooling::kCls : Pooling::kMean;
        int32_t features = m.hidden;
        if (const int32_t dense = number(config_, "dense_features")) {
            m.head.dense = linear("head.dense", dense, m.hidden);
            m.head.dense_act = parse_act(config_["dense_activation"].cast<std::string>());
            features = dense;
        }
        if (const int32_t outputs = number(config_, "num_outputs")) m.head.out = linear("head.out", outputs, features);
        return m;
    }

  private:
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

    Linear linear(const std::string& name, int32_t n, int32_t k) const {
        auto bias = floats(name + ".bias", n);
        if (has(name + ".weight"))
            return Linear(F32Weights(n, k, matrix<float>(name + ".weight", n, k).data(), bias.data()));
        auto scale = floats(name + ".scale", n);
        if (has(name + ".q"))
            return Linear(Int8Weights::from_dense(kernels_, n, k, matrix<int8_t>(name + ".q", n, k).data(),
                                                  scale.data(), bias.data()));
        if (has(name + ".q4"))
            return Linear(int4_from_dense(kernels_, n, k, tensor(name + ".q4"), tensor(name + ".group_scale"),
                                          scale.data(), bias.data(), name + "."));
        if (has(name + ".tiles4"))
            return Linear(int4_from_bsr(kernels_, n, k, tensor(name + ".indptr"), tensor(name + ".indices"),
                                        tensor(name + ".tiles4"), tensor(name + ".group_scale"), scale.data(),
                                        bias.data(), name + "."));
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
        for (int64_t t = 0; t < count; ++t) expect(indices.at(t) < groups, name + ".indices is out of range");
        return Linear(Int8Weights::from_bsr(kernels_, n, k, indptr.data(), indices.data(), tiles.data(), scale.data(),
                                            bias.data()));
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
};

struct PyEncoder {
    // The embedding tables are read in place: these references keep their memory map alive.
    std::vector<py::object> tables;
    std::unique_ptr<Encoder> encoder;
};

Tuning parse_tuning(const std::map<std::string, int32_t>& values) {
    Tuning tuning;
    const std::map<std::string, int32_t*> fields = {{"group_tokens", &tuning.group_tokens},
                                                    {"block_tokens", &tuning.block_tokens},
                                                    {"team_block_tokens", &tuning.team_block_tokens},
                                                    {"few_tokens", &tuning.few_tokens}};
    for (const auto& value : values) {
        const auto field = fields.find(value.first);
        expect(field != fields.end(), "unknown tuning '" + value.first + "'");
        const int32_t least = value.first == "few_tokens" ? 0 : 1;
        expect(value.second >= least, value.first + " must be at least " + std::to_string(least));
        *field->second = value.second;
    }
    return tuning;
}

PyEncoder make_encoder(const py::dict& config, const Tensors& tensors, const std::string& isa, int threads,
                       const std::map<std::string, int32_t>& tuning) {
    expect(threads >= 1 && threads <= 1024, "threads must be 1 to 1024, got " + std::to_string(threads));
    const KernelTable& kernels = kernels_for(resolve_isa(isa));
    PyEncoder e;
    for (const auto& entry : tensors)
        if (entry.first.rfind("embeddings.", 0) == 0) e.tables.push_back(entry.second);
    e.encoder = std::make_unique<Encoder>(Builder(config, tensors, kernels).build(), kernels, ThreadPool::get(threads),
                                          parse_tuning(tuning));
    return e;
}

Output parse_output(const std::string& name) {
    if (name == "logits") return Output::kLogits;
    if (name == "pooled") return Output::kPooled;
    if (name == "hidden") return Output::kHidden;
    throw py::value_error("unknown output '" + name + "': logits, pooled, hidden");
}

Array<float> forward(const PyEncoder& self, const py::array& ids_any, const py::object& types_any,
                     const py::array& cu_seqlens_any, const std::string& output) {
    auto ids = typed<int32_t>(ids_any, 1, "ids"), cu = typed<int32_t>(cu_seqlens_any, 1, "cu_seqlens");
    expect(cu.shape(0) >= 1, "cu_seqlens is empty");
    const Output what = parse_output(output);
    Batch batch{ids.data(), nullptr, cu.data(), static_cast<int32_t>(cu.shape(0) - 1)};
    for (py::ssize_t i = 0; i + 1 < cu.shape(0); ++i) expect(cu.at(i) <= cu.at(i + 1), "cu_seqlens descends");
    expect(cu.at(cu.shape(0) - 1) == ids.shape(0), "cu_seqlens must end with the number of ids");
    Array<int32_t> types;
    if (!types_any.is_none()) {
        types = typed<int32_t>(types_any, 1, "types");
        expect(types.shape(0) == ids.shape(0), "types needs one value a token");
        batch.types = types.data();
    }
    self.encoder->check(batch);
    const int32_t columns = self.encoder->output_columns(what);
    Array<float> out({self.encoder->output_rows(batch, what), static_cast<int64_t>(columns)});
    float* data = out.mutable_data();
    {
        py::gil_scoped_release release;
        self.encoder->forward(batch, what, data);
    }
    return out;
}

py::dict take_profile(PyEncoder& self) {
    const Profile profile = self.encoder->take_profile();
    py::list ops;
    for (int i = 0; i < kOps; ++i) {
        const OpTime& op = profile.ops[i];
        if (!op.calls) continue;
        py::dict entry;
        entry["op"] = kOpNames[i];
        entry["calls"] = op.calls;
        entry["ns"] = op.ns;
        entry["macs"] = op.macs;
        ops.append(entry);
    }
    py::dict result;
    result["passes"] = profile.passes;
    result["wall_ns"] = profile.wall_ns;
    result["ops"] = ops;
    return result;
}

py::tuple plan_groups(const py::array& cu_seqlens_any, int threads) {
    auto cu = typed<int32_t>(cu_seqlens_any, 1, "cu_seqlens");
    expect(cu.shape(0) >= 2 && threads >= 1, "plan_groups needs at least one sequence and one thread");
    Plan plan;
    make_plan(cu.data(), static_cast<int32_t>(cu.shape(0) - 1), threads, Tuning(), plan);
    py::list groups;
    for (const Group& group : plan.groups) groups.append(py::make_tuple(group.begin, group.end));
    return py::make_tuple(plan.apart, groups);
}

}  // namespace

void bind_encoder(py::module_& module) {
    module.def("plan_groups", &plan_groups, py::arg("cu_seqlens"), py::arg("threads"),
               "How a batch is divided: (whether groups go through the layers apart, [(first sequence, end)]).");
    py::class_<PyEncoder>(module, "Encoder", "A transformer encoder with its head on the CPU.")
        .def(py::init(&make_encoder), py::arg("config"), py::arg("tensors"), py::arg("isa"), py::arg("threads"),
             py::arg("tuning") = std::map<std::string, int32_t>())
        .def("forward", &forward, py::arg("ids"), py::arg("types"), py::arg("cu_seqlens"), py::arg("output"),
             "ids int32 [tokens], types int32 [tokens] or None, cu_seqlens int32 [sequences + 1] -> float32 "
             "[sequences, outputs] (logits), [sequences, hidden] (pooled) or [tokens, hidden] (hidden).")
        .def(
            "set_profiling", [](PyEncoder& e, bool on) { e.encoder->set_profiling(on); }, py::arg("on"),
            "Time passes by operator from now on, or stop.")
        .def("take_profile", &take_profile,
             "{passes, wall_ns, ops: [{op, calls, ns, macs}]} since the last call; ns and macs summed over threads.")
        .def_property_readonly("threads", [](const PyEncoder& e) { return e.encoder->threads(); })
        .def_property_readonly(
            "weight_bytes", [](const PyEncoder& e) { return e.encoder->weight_bytes(); },
            "Bytes of packed weights, embedding tables not counted.")
        .def_property_readonly(
            "scratch_bytes", [](const PyEncoder& e) { return e.encoder->scratch_bytes(); },
            "Bytes of scratch memory of idle contexts.");
}

}  // namespace approxrt
