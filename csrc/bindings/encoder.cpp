// The encoder for Python: built from an artifact's spec and tensors, called with packed tokens.
#include <pybind11/stl.h>

#include "engine/encoder/encoder.h"
#include "encoder_builder.h"
#include "packed_engine.h"

namespace approxrt {
namespace {

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

class PyEncoder : public PackedEngine<Encoder, EncoderModel, EncoderBuilder> {
  public:
    PyEncoder(const py::dict& config, const Tensors& tensors, const std::string& isa, int threads,
              const std::map<std::string, int32_t>& tuning)
        : PackedEngine(config, tensors, isa, threads,
                       [tuning = parse_tuning(tuning)](EncoderModel model, const KernelTable& kernels,
                                                       std::shared_ptr<ThreadPool> pool) {
                           return std::make_unique<Encoder>(std::move(model), kernels, std::move(pool), tuning);
                       }) {}
};

Output parse_output(const std::string& name) {
    if (name == "logits") return Output::kLogits;
    if (name == "pooled") return Output::kPooled;
    if (name == "hidden") return Output::kHidden;
    throw py::value_error("unknown output '" + name + "': logits, pooled, hidden");
}

Array<float> forward(PyEncoder& self, const py::array& ids_any, const py::object& types_any,
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
    const Encoder& encoder = self.ready();
    encoder.check(batch);
    const int32_t columns = encoder.output_columns(what);
    Array<float> out({encoder.output_rows(batch, what), static_cast<int64_t>(columns)});
    float* data = out.mutable_data();
    {
        py::gil_scoped_release release;
        encoder.forward(batch, what, data);
    }
    return out;
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
    py::class_<PyEncoder> encoder(module, "Encoder", "A transformer encoder with its head on the CPU.");
    encoder
        .def(
            py::init<const py::dict&, const Tensors&, const std::string&, int, const std::map<std::string, int32_t>&>(),
            py::arg("config"), py::arg("tensors"), py::arg("isa"), py::arg("threads"),
            py::arg("tuning") = std::map<std::string, int32_t>(),
            "Checks the arrays, and starts to pack them for the instruction set.")
        .def("forward", &forward, py::arg("ids"), py::arg("types"), py::arg("cu_seqlens"), py::arg("output"),
             "ids int32 [tokens], types int32 [tokens] or None, cu_seqlens int32 [sequences + 1] -> float32 "
             "[sequences, outputs] (logits; [tokens, outputs] of a head per token), [sequences, hidden] (pooled) or "
             "[tokens, hidden] (hidden).");
    PyEncoder::define(encoder);
}

}  // namespace approxrt
