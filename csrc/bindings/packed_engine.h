// An engine whose weights are packed by a thread of its own: Python waits for it where it first needs it. Where the
// system gives no thread, they are packed there.
#pragma once

#include <functional>
#include <future>
#include <memory>

#include "linear_builder.h"
#include "profile_dict.h"

namespace approxrt {

template <class Engine, class Model, class Builder>
class PackedEngine {
  public:
    // Checks the arrays, and starts to pack them. make(model, kernels, pool) makes the engine of what was packed.
    using Make = std::function<std::unique_ptr<Engine>(Model, const KernelTable&, std::shared_ptr<ThreadPool>)>;
    PackedEngine(const py::dict& config, const Tensors& tensors, const std::string& isa, int threads, Make make)
        : make_(std::move(make)) {
        expect(threads >= 1 && threads <= 1024, "threads must be 1 to 1024, got " + std::to_string(threads));
        for (const auto& entry : tensors)
            if (entry.first.rfind("embeddings.", 0) == 0) tables_.push_back(entry.second);
        packing_ = std::make_shared<Packing>(config, tensors, kernels_for(resolve_isa(isa)), ThreadPool::get(threads));
    }

    // Waits for packing without the GIL; throws what it threw.
    Engine& ready() {
        if (!engine_) {
            const auto packing = packing_;  // another Python thread may get ahead and reset it
            {
                py::gil_scoped_release release;
                packing->done.get();
            }
            if (!engine_) {
                engine_ = make_(std::move(packing->model), packing->kernels, packing->pool);
                packing_.reset();
            }
        }
        return *engine_;
    }

    // What Python's class has of every engine.
    template <class Class>
    static void define(Class& c) {
        using Self = typename Class::type;
        c.def(
             "wait", [](Self& e) { e.ready(); },
             "Returns when the weights are packed, which every other method waits for, too. Before a fork: an engine "
             "that is not ready stays so in the child.")
            .def(
                "set_profiling", [](Self& e, bool on) { e.ready().set_profiling(on); }, py::arg("on"),
                "Time passes by operator from now on, or stop.")
            .def(
                "take_profile", [](Self& e) { return profile_dict(e.ready().take_profile()); },
                "{passes, wall_ns, ops: [{op, calls, ns, macs}]} since the last call; ns and macs summed over threads.")
            .def_property_readonly("threads", [](Self& e) { return e.ready().threads(); })
            .def_property_readonly(
                "missing_threads", [](Self& e) { return e.ready().missing_threads(); },
                "How many of `threads` the system refused when they were last asked for; the others did their work.")
            .def_property_readonly(
                "weight_bytes", [](Self& e) { return e.ready().weight_bytes(); },
                "Bytes of packed weights, embedding tables not counted.")
            .def_property_readonly(
                "scratch_bytes", [](Self& e) { return e.ready().scratch_bytes(); },
                "Bytes of scratch memory of idle contexts.");
    }

  private:
    struct Packing {
        Packing(py::dict config_, Tensors tensors_, const KernelTable& kernels_, std::shared_ptr<ThreadPool> pool_)
            : config(std::move(config_)), tensors(std::move(tensors_)), kernels(kernels_), pool(std::move(pool_)) {
            const auto builder = std::make_shared<Builder>(config, tensors, kernels, model);
            builder->build();
            // An lvalue: where there is no thread, std::async takes it a second time.
            const auto pack = [builder, this] { builder->pack(*pool); };
            done = std::async(std::launch::async | std::launch::deferred, pack);
        }

        py::dict config;
        Tensors tensors;  // keeps the arrays alive that packing reads
        const KernelTable& kernels;
        std::shared_ptr<ThreadPool> pool;
        Model model;
        std::shared_future<void> done;  // destroyed first: that waits for the thread, which uses the rest
    };

    const Make make_;
    // The embedding tables are read in place: these references keep their memory map alive.
    std::vector<py::object> tables_;
    std::shared_ptr<Packing> packing_;
    std::unique_ptr<Engine> engine_;
};

}  // namespace approxrt
