// Single kernels for tests and benchmarks: one call, one kernel, at a level of the caller's choice.
#include "panels.h"

namespace approxrt {

void bind_panels(py::module_& module);
void bind_tokens(py::module_& module);
void bind_int8_linear(py::module_& module);
void bind_int4_linear(py::module_& module);
void bind_f32_linear(py::module_& module);
void bind_group_linear(py::module_& module);
void bind_float_kernels(py::module_& module);
void bind_embedding(py::module_& module);
void bind_cache(py::module_& module);
void bind_sign_attention(py::module_& module);
void bind_head_preview(py::module_& module);
void bind_schur_complement(py::module_& module);

void bind_kernels(py::module_& parent) {
    auto module = parent.def_submodule("kernels", "Single kernels, for tests and benchmarks.");
    bind_panels(module);
    bind_tokens(module);
    bind_int8_linear(module);
    bind_int4_linear(module);
    bind_f32_linear(module);
    bind_group_linear(module);
    bind_float_kernels(module);
    bind_embedding(module);
    bind_cache(module);
    bind_sign_attention(module);
    bind_head_preview(module);
    bind_schur_complement(module);
    module.def(
        "peak_int8",
        [](int64_t iterations, const std::string& isa) {
            py::gil_scoped_release release;
            return table(isa).peak_int8(iterations);
        },
        py::arg("iterations"), py::arg("isa") = "",
        "Products executed by that many rounds of register-only int8 work.");
    module.def(
        "peak_f32",
        [](int64_t iterations, const std::string& isa) {
            py::gil_scoped_release release;
            return table(isa).peak_f32(iterations);
        },
        py::arg("iterations"), py::arg("isa") = "", "The same for float32.");
}

}  // namespace approxrt
