// A sequence's cache for Python; Decoder.cache makes them.
#include "engine/decoder/kv_cache.h"
#include "arrays.h"

namespace approxrt {

void bind_kv_cache(py::module_& module) {
    py::class_<KvCache>(module, "KvCache", "Keys and values of one sequence (Decoder.cache).")
        .def_property_readonly("capacity", &KvCache::capacity)
        .def_property_readonly("length", &KvCache::length, "Tokens in it.")
        .def_property_readonly("bytes", &KvCache::bytes)
        .def("truncate", &KvCache::truncate, py::arg("length"), "Forget all but the first `length` tokens.");
}

}  // namespace approxrt
