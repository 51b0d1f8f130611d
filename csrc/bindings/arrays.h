// numpy arrays as checked, typed views.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>
#include <string>

#include "args.h"

namespace approxrt {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
const char* dtype_name();
template <>
inline const char* dtype_name<float>() {
    return "float32";
}
template <>
inline const char* dtype_name<double>() {
    return "float64";
}
template <>
inline const char* dtype_name<int8_t>() {
    return "int8";
}
template <>
inline const char* dtype_name<int32_t>() {
    return "int32";
}
template <>
inline const char* dtype_name<uint8_t>() {
    return "uint8";
}
template <>
inline const char* dtype_name<uint16_t>() {
    return "uint16";
}
template <>
inline const char* dtype_name<uint64_t>() {
    return "uint64";
}

// The array behind `object`, which must be a C-contiguous numpy array of exactly this dtype and rank:
// nothing is converted or copied behind the caller's back.
template <class T>
Array<T> typed(const py::handle& object, int rank, const std::string& name) {
    if (!py::isinstance<Array<T>>(object)) {
        throw py::type_error(name + ": expected a C-contiguous numpy array of " + dtype_name<T>() + ", got " +
                             std::string(py::str(py::type::handle_of(object))) +
                             (py::isinstance<py::array>(object)
                                  ? " of " + std::string(py::str(object.attr("dtype"))) + ", shape " +
                                        std::string(py::str(object.attr("shape")))
                                  : std::string()));
    }
    auto array = py::reinterpret_borrow<Array<T>>(object);
    if (array.ndim() != rank)
        throw py::value_error(name + ": expected " + std::to_string(rank) + " dimensions, got " +
                              std::to_string(array.ndim()));
    return array;
}

inline void expect(bool condition, const std::string& message) {
    if (!condition) throw py::value_error(message);
}

// `ids` as they are, which must ascend strictly within 0 to `limit` - 1.
inline const int32_t* ascending(const Array<int32_t>& ids, int64_t limit, const std::string& name) {
    const int32_t* values = ids.data();
    const int64_t count = ids.shape(0);
    bool sound = true;
    for (int64_t i = 0; i < count; ++i) sound &= values[i] < limit && values[i] > (i ? values[i - 1] : -1);
    expect(sound, name + " must ascend strictly within 0 to " + std::to_string(limit - 1));
    return values;
}

inline Act parse_act(const std::string& name) {
    if (name == "identity") return Act::kIdentity;
    if (name == "gelu") return Act::kGelu;
    if (name == "gelu_tanh") return Act::kGeluTanh;
    if (name == "relu") return Act::kRelu;
    if (name == "tanh") return Act::kTanh;
    if (name == "silu") return Act::kSilu;
    throw py::value_error("unknown activation '" + name + "': identity, gelu, gelu_tanh, relu, tanh, silu");
}

}  // namespace approxrt
