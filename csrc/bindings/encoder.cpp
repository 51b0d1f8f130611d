// The encoder for Python: built from an artifact's spec and tensors, called with packed tokens.
#include <future>

#include <pybind11/stl.h>

#include "engine/encoder/encoder.h"
#include "encoder_builder.h"
#include "profile_dict.h"

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

// A model whose weights are being packed by a thread of its own.
struct Packing {
    Packing(py::dict config_, Tensors tensors_, const KernelTable& kernels_, std::shared_ptr<ThreadPool> pool_)
        : config(std::move(config_)), tensors(std::move(tensors_)), kernels(kernels_), pool(std::move(pool_)) {
        Builder builder(config, tensors, kernels, model);
        builder.build();
        done = std::async(std::launch::async, [builder = std::move(builder), this] { builder.pack(*pool); });
    }

    py::dict config;
    Tensors tensors;  // keeps the arrays alive that packing reads
    const KernelTable& kernels;
    std::shared_ptr<ThreadPool> pool;
    EncoderModel model;
    std::shared_future<void> done;  // destroyed first: that waits for the thread, which uses the rest
};

class PyEncoder {
  public:
    PyEncoder(const py::dict& config, const Tensors& tensors, const std::string& isa, int threads,
              const std::map<std::string, int32_t>& tuning)
        : tuning_(parse_tuning(tuning)) {
        expect(threads >= 1 && threads <= 1024, "threads must be 1 to 1024, got " + std::to_string(threads));
        for (const auto& entry : tensors)
            if (entry.first.rfind("embeddings.", 0) == 0) tables_.push_back(entry.second);
        packing_ = std::make_shared<Packing>(config, tensors, kernels_for(resolve_isa(isa)), ThreadPool::get(threads));
    }

    // Waits for packing without the GIL; throws what it threw.
    Encoder& ready() {
        if (!encoder_) {
            const auto packing = packing_;  // another Python thread may get ahead and reset it
            {
                py::gil_scoped_release release;
                packing->done.get();
            }
            if (!encoder_) {
                encoder_ =
                    std::make_unique<Encoder>(std::move(packing->model), packing->kernels, packing->pool, tuning_);
                packing_.reset();
            }
        }
        return *encoder_;
    }

  private:
    const Tuning tuning_;
    // The embedding tables are read in place: these references keep their memory map alive.
    std::vector<py::object> tables_;
    std::shared_ptr<Packing> packing_;
    std::unique_ptr<Encoder> encoder_;
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
    py::class_<PyEncoder>(module, "Encoder", "A transformer encoder with its head on the CPU.")
        .def(
            py::init<const py::dict&, const Tensors&, const std::string&, int, const std::map<std::string, int32_t>&>(),
            py::arg("config"), py::arg("tensors"), py::arg("isa"), py::arg("threads"),
            py::arg("tuning") = std::map<std::string, int32_t>(),
            "Checks the arrays, and starts to pack them for the instruction set.")
        .def(
            "wait", [](PyEncoder& e) { e.ready(); },
            "Returns when the weights are packed, which every other method waits for, too. Before a fork: an encoder "
            "that is not ready stays so in the child.")
        .def("forward", &forward, py::arg("ids"), py::arg("types"), py::arg("cu_seqlens"), py::arg("output"),
             "ids int32 [tokens], types int32 [tokens] or None, cu_seqlens int32 [sequences + 1] -> float32 "
             "[sequences, outputs] (logits), [sequences, hidden] (pooled) or [tokens, hidden] (hidden).")
        .def(
            "set_profiling", [](PyEncoder& e, bool on) { e.ready().set_profiling(on); }, py::arg("on"),
            "Time passes by operator from now on, or stop.")
        .def(
            "take_profile", [](PyEncoder& e) { return profile_dict(e.ready().take_profile()); },
            "{passes, wall_ns, ops: [{op, calls, ns, macs}]} since the last call; ns and macs summed over threads.")
        .def_property_readonly("threads", [](PyEncoder& e) { return e.ready().threads(); })
        .def_property_readonly(
            "weight_bytes", [](PyEncoder& e) { return e.ready().weight_bytes(); },
            "Bytes of packed weights, embedding tables not counted.")
        .def_property_readonly(
            "scratch_bytes", [](PyEncoder& e) { return e.ready().scratch_bytes(); },
            "Bytes of scratch memory of idle contexts.");
}

}  // namespace approxrt
