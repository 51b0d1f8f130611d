// What builders of models share: arrays of an artifact checked by name, and linears packed later, in parallel.
#pragma once

#include <atomic>
#include <exception>
#include <functional>
#include <map>
#include <vector>

#include "engine/common/weights.h"
#include "thread_pool.h"
#include "group_arrays.h"
#include "int4_arrays.h"

namespace approxrt {

using Tensors = std::map<std::string, py::object>;

class LinearBuilder {
  public:
    // Everything must outlive the builder; linears are written by `pack`, so their model must stay where it is.
    LinearBuilder(const py::dict& config, const Tensors& tensors, const KernelTable& kernels)
        : config_(config), tensors_(tensors), kernels_(kernels) {}

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

  protected:
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
        // Weights with float16 scales a group have no scale an output.
        if (has(name + ".q2")) {
            auto pack = group_sixes(n, k, tensor(name + ".q4"), tensor(name + ".q2"), tensor(name + ".group_scale"),
                                    bias, name + ".");
            return [pack] { return Linear(pack()); };
        }
        if (!has(name + ".scale") && has(name + ".q4")) {
            auto pack = group_nibbles(n, k, tensor(name + ".q4"), tensor(name + ".group_scale"),
                                      tensor(name + ".group_offset"), bias, name + ".");
            return [pack] { return Linear(pack()); };
        }
        if (!has(name + ".scale") && has(name + ".q")) {
            auto pack = group_bytes(n, k, tensor(name + ".q"), tensor(name + ".group_scale"), bias, name + ".");
            return [pack] { return Linear(pack()); };
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

    const py::dict& config_;
    const Tensors& tensors_;
    const KernelTable& kernels_;

  private:
    std::vector<Job> jobs_;
};

}  // namespace approxrt
