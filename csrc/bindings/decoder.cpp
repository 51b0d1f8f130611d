// The decoder for Python: built from an artifact's spec and tensors, stepped with new tokens of several caches.
#include <pybind11/stl.h>

#include "engine/decoder/decoder.h"
#include "decoder_builder.h"
#include "packed_engine.h"

namespace approxrt {
namespace {

class PyDecoder : public PackedEngine<Decoder, DecoderModel, DecoderBuilder> {
  public:
    PyDecoder(const py::dict& config, const Tensors& tensors, const std::string& isa, int threads, int32_t block_tokens)
        : PackedEngine(config, tensors, isa, threads,
                       [block_tokens = checked(block_tokens)](DecoderModel model, const KernelTable& kernels,
                                                              std::shared_ptr<ThreadPool> pool) {
                           return std::make_unique<Decoder>(std::move(model), kernels, std::move(pool), block_tokens);
                       }) {}

  private:
    static int32_t checked(int32_t block_tokens) {
        expect(block_tokens >= 1, "block_tokens must be at least 1");
        return block_tokens;
    }
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
    Step step{.ids = ids.data(),
              .runs = runs.data(),
              .count = static_cast<int32_t>(runs.size()),
              .tokens = static_cast<int32_t>(ids.size()),
              .all_logits = all_logits,
              .logits = nullptr,
              .hidden = hidden};
    decoder.check(step);
    const int64_t width = hidden ? decoder.model().hidden : decoder.model().vocab(), padded = round_up(width, kTileN);
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
    py::class_<PyDecoder> decoder(module, "Decoder", "A pre-norm transformer decoder with its head on the CPU.");
    decoder
        .def(py::init<const py::dict&, const Tensors&, const std::string&, int, int32_t>(), py::arg("config"),
             py::arg("tensors"), py::arg("isa"), py::arg("threads"), py::arg("block_tokens") = 48,
             "Checks the arrays, and starts to pack them for the instruction set.")
        .def("cache", &make_cache, py::arg("capacity"), py::arg("kind") = "f16",
             "A cache for one sequence of at most `capacity` tokens: f32, f16 or int8.")
        .def("step", &step, py::arg("caches"), py::arg("tokens"), py::arg("all_logits") = false,
             py::arg("hidden") = false,
             "Append the ids tokens[i] to caches[i] -> float32 [caches, vocab], or [tokens, vocab] with all_logits; "
             "with hidden [tokens, hidden], what the head would read.");
    PyDecoder::define(decoder);
}

}  // namespace approxrt
