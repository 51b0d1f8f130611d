// Activations quantised per token, in panels of a level's own.
#include "panels.h"

#include <algorithm>
#include <cstring>

namespace approxrt {
namespace {

Panels quantize(const py::array& x_any, const std::string& isa, bool bytes) {
    auto x = typed<float>(x_any, 2, "x");
    const KernelTable& t = table(isa);
    Panels p(bytes ? t.int4_layout : t.layout, x.shape(0), x.shape(1));
    (bytes ? t.quantize_rows_u8 : t.quantize_rows)({.x = x.data(),
                                                    .ldx = p.k,
                                                    .rows = p.rows,
                                                    .k = p.k,
                                                    .panels = p.data.as<void>(),
                                                    .scales = p.scales.as<float>()});
    return p;
}

// Panels from integers, for products over the whole range of values.
Panels panels_from_int8(const py::array& q_any, const std::string& isa, bool bytes) {
    auto q = typed<int8_t>(q_any, 2, "q");
    const KernelTable& t = table(isa);
    Panels p(bytes ? t.int4_layout : t.layout, q.shape(0), q.shape(1));
    std::memset(p.data.as<char>(), 0, p.data.size());
    std::fill_n(p.scales.as<float>(), p.rows, 1.0f);
    for (int32_t i = 0; i < round_up(p.rows, p.layout.mr); ++i) {
        for (int32_t j = 0; j < round_up(p.k, kTileK); ++j) {
            const int value = (i < p.rows && j < p.k ? q.at(i, j) : 0) + p.layout.bias;
            if (p.layout.element_size == 1) {
                *reinterpret_cast<uint8_t*>(p.at(i, j)) = static_cast<uint8_t>(value);
            } else {
                *reinterpret_cast<int16_t*>(p.at(i, j)) = static_cast<int16_t>(value);
            }
        }
    }
    return p;
}

py::tuple unpack(const Panels& p) {
    Array<int8_t> q({p.rows, p.k});
    Array<float> scales(p.rows);
    std::memcpy(scales.mutable_data(), p.scales.as<float>(), sizeof(float) * p.rows);
    for (int32_t i = 0; i < p.rows; ++i)
        for (int32_t j = 0; j < p.k; ++j) {
            const char* at = p.at(i, j);
            const int value = p.layout.element_size == 1 ? *reinterpret_cast<const uint8_t*>(at)
                                                         : *reinterpret_cast<const int16_t*>(at);
            q.mutable_at(i, j) = static_cast<int8_t>(value - p.layout.bias);
        }
    return py::make_tuple(q, scales);
}

}  // namespace

void bind_panels(py::module_& module) {
    py::class_<Panels>(module, "Panels", "Activations quantised per token, in a kernel family's layout.")
        .def("unpack", &unpack, "(q int8 [rows, k], scales float32 [rows])")
        .def_readonly("rows", &Panels::rows)
        .def_readonly("k", &Panels::k);
    module.def(
        "quantize_rows", [](const py::array& x, const std::string& isa) { return quantize(x, isa, false); },
        py::arg("x"), py::arg("isa") = "", "Quantise float32 [rows, k] per row, for Int8Linear.");
    module.def(
        "quantize_rows_u8", [](const py::array& x, const std::string& isa) { return quantize(x, isa, true); },
        py::arg("x"), py::arg("isa") = "", "The same for Int4Linear.");
    module.def("panels_from_int8", &panels_from_int8, py::arg("q"), py::arg("isa") = "", py::arg("u8") = false,
               "Panels with given integers and scales of 1, for Int8Linear or (u8) Int4Linear.");
}

}  // namespace approxrt
