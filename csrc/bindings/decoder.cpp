// The decoder for Python: built from an artifact's spec and tensors, stepped with new tokens of several caches.
#include <future>

#include <pybind11/stl.h>

#include "engine/decoder/decoder.h"
#include "decoder_builder.h"
#include "profile_dict.h"

namespace approxrt {
namespace {

// A model whose weights are being packed by a thread of its own.
struct Packing {
    Packing(py::dict config_, Tensors tensors_, const KernelTable& kernels_, std::shared_ptr<ThreadPool> pool_)
        : config(std::move(config_)), tensors(std::move(tensors_)), kernels(kernels_), pool(std::move(pool_)) {
        DecoderBuilder builder(config, tensors, kernels, model);
        builder.build();
        done = std::async(std::launch::async, [builder = std::move(builder), this] { builder.pack(*pool); });
    }

    py::dict config;
    Tensors tensors;  // keeps the arrays alive that packing reads
    const KernelTable& kernels;
    std::shared_ptr<ThreadPool> pool;
    DecoderModel model;
    std::shared_future<void> done;  // destroyed first: that waits for the thread, which uses the rest
};

class PyDecoder {
  public:
    PyDecoder(const py::dict& config, const Tensors& tensors, const std::string& isa, int threads, int32_t block_tokens)
        : block_tokens_(block_tokens) {
        expect(threads >= 1 && threads <= 1024, "threads must be 1 to 1024, got " + std::to_string(threads));
        expect(block_tokens >= 1, "block_tokens must be at least 1");
        for (const auto& entry : tensors)
            if (entry.first.rfind("embeddings.", 0) == 0) tables_.push_back(entry.second);
        packing_ = std::make_shared<Packing>(config, tensors, kernels_for(resolve_isa(isa)), ThreadPool::get(threads));
    }

    // Waits for packing without the GIL; throws what it threw.
    Decoder& ready() {
        if (!decoder_) {
            const auto packing = packing_;  // another Python thread may get ahead and reset it
            {
                py::gil_scoped_release release;
                packing->done.get();
            }
            if (!decoder_) {
                decoder_ = std::make_unique<Decoder>(std::move(packing->model), packing->kernels, packing->pool,
                                                     block_tokens_);
                packing_.reset();
            }
        }
        return *decoder_;
    }

  private:
    const int32_t block_tokens_;
    std::vector<py::object> tables_;  // read in place: these references keep their memory map alive
    std::shared_ptr<Packing> packing_;
    std::unique_ptr<Decoder> decoder_;
};

CacheKind parse_kind(const std::string& name) {
    if (name == "f32") return CacheKind::kF32;
    if (name == "f16") return CacheKind::kF16;
    if (name == "int8") return CacheKind::kInt8;
    throw py::value_error("unknown kind of cache '" + name + "': f32, f16, int8");
}

std::unique_ptr<KvCache> make_cache(PyDecoder& self, int64_t capacity, const std::string& kind) {
    const DecoderModel& model = self.ready().model();
    expect(capacity >= 1 && capacity <= model.max_positions, "a cache of " + std::to_string(capacity) +
                                                                 " tokens: the model has positions for 1 to " +
                                                                 std::to_string(model.max_positions));
    return std::make_unique<KvCache>(model, parse_kind(kind), capacity);
}

// The caches of a step, each entered once; left on the way out, whatever happens.
class Entered {
  public:
    explicit Entered(const std::vector<KvCache*>& caches) {
        for (size_t i = 0; i < caches.size(); ++i) {
            if (!caches[i]->enter()) {
                leave();
                throw py::value_error("cache " + std::to_string(i) +
                                      " is in a step already (another thread's, or given twice): one cache a sequence");
            }
            entered_.push_back(caches[i]);
        }
    }
    ~Entered() { leave(); }
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;

  private:
    void leave() {
        for (KvCache* cache : entered_) cache->leave();
        entered_.clear();
    }
    std::vector<KvCache*> entered_;
};

// Plain sequences: between two steps of one token, which leave little else in the caches, every call of numpy is slow.
py::object step(PyDecoder& self, const std::vector<KvCache*>& caches, const std::vector<std::vector<int32_t>>& tokens,
                bool all_logits, bool hidden) {
    expect(tokens.size() == caches.size(),
           "the step has " + std::to_string(caches.size()) + " caches and tokens for " + std::to_string(tokens.size()));
    std::vector<int32_t> ids;
    std::vector<SequenceRun> runs;
    for (size_t i = 0; i < caches.size(); ++i) {
        expect(caches[i] != nullptr, "a cache is None");
        runs.push_back({caches[i], static_cast<int32_t>(ids.size()), static_cast<int32_t>(tokens[i].size())});
        ids.insert(ids.end(), tokens[i].begin(), tokens[i].end());
    }
    const Decoder& decoder = self.ready();
    const Entered entered(caches);
    Step step{ids.data(), runs.data(), static_cast<int32_t>(runs.size()), static_cast<int32_t>(ids.size()), all_logits,
              nullptr,    hidden};
    decoder.check(step);
    const int64_t width = hidden ? decoder.model().hidden : decoder.model().vocab, padded = round_up(width, kTileN);
    Array<float> out({static_cast<int64_t>(step.logit_rows()), padded});
    step.logits = out.mutable_data();
    {
        py::gil_scoped_release release;
        decoder.run(step);
    }
    if (padded == width) return out;
    return out[py::make_tuple(py::ellipsis(), py::slice(0, width, 1))];
}

}  // namespace

void bind_decoder(py::module_& module) {
    py::class_<KvCache>(module, "KvCache", "Keys and values of one sequence (Decoder.cache).")
        .def_property_readonly("capacity", &KvCache::capacity)
        .def_property_readonly("length", &KvCache::length, "Tokens in it.")
        .def_property_readonly("bytes", &KvCache::bytes)
        .def("truncate", &KvCache::truncate, py::arg("length"), "Forget all but the first `length` tokens.");
    py::class_<PyDecoder>(module, "Decoder", "A pre-norm transformer decoder with its head on the CPU.")
        .def(py::init<const py::dict&, const Tensors&, const std::string&, int, int32_t>(), py::arg("config"),
             py::arg("tensors"), py::arg("isa"), py::arg("threads"), py::arg("block_tokens") = 48,
             "Checks the arrays, and starts to pack them for the instruction set.")
        .def(
            "wait", [](PyDecoder& d) { d.ready(); }, "Returns when the weights are packed.")
        .def("cache", &make_cache, py::arg("capacity"), py::arg("kind") = "f16",
             "A cache for one sequence of at most `capacity` tokens: f32, f16 or int8.")
        .def("step", &step, py::arg("caches"), py::arg("tokens"), py::arg("all_logits") = false,
             py::arg("hidden") = false,
             "Append the ids tokens[i] to caches[i] -> float32 [caches, vocab], or [tokens, vocab] with all_logits; "
             "with "
             "hidden [tokens, hidden], what the head would read.")
        .def(
            "set_profiling", [](PyDecoder& d, bool on) { d.ready().set_profiling(on); }, py::arg("on"),
            "Time steps by operator from now on, or stop.")
        .def(
            "take_profile", [](PyDecoder& d) { return profile_dict(d.ready().take_profile()); },
            "{passes, wall_ns, ops: [{op, calls, ns, macs}]} since the last call; ns and macs summed over threads.")
        .def_property_readonly("threads", [](PyDecoder& d) { return d.ready().threads(); })
        .def_property_readonly(
            "weight_bytes", [](PyDecoder& d) { return d.ready().weight_bytes(); },
            "Bytes of packed weights, the word table's rows not counted.")
        .def_property_readonly(
            "scratch_bytes", [](PyDecoder& d) { return d.ready().scratch_bytes(); },
            "Bytes of scratch memory of idle contexts.");
}

}  // namespace approxrt
