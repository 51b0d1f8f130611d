// The extension module: levels, kernels, encoder, decoder, pruning.
#include "dispatch.h"
#include "arrays.h"

namespace approxrt {
void bind_kernels(py::module_& module);
void bind_encoder(py::module_& module);
void bind_kv_cache(py::module_& module);
void bind_decoder(py::module_& module);
void bind_pruning(py::module_& module);
}  // namespace approxrt

PYBIND11_MODULE(_C, module) {
    namespace py = pybind11;
    using namespace approxrt;
    module.doc() = "approxrt's CPU kernels and engine";
    module.attr("__version__") = APPROXRT_VERSION;
#ifdef APPROXRT_SANITIZED
    module.attr("sanitized") = true;
#else
    module.attr("sanitized") = false;
#endif
    module.def(
        "detected_isa", [] { return std::string(isa_name(detected_isa())); },
        "The best instruction-set level of this CPU and operating system.");
    module.def(
        "supported_isas",
        [] {
            py::list names;
            for (Isa isa : supported_isas()) names.append(isa_name(isa));
            return names;
        },
        "Levels that can run here, ascending.");
    module.def(
        "resolve_isa", [](const std::string& name) { return std::string(isa_name(resolve_isa(name))); },
        "A level's name checked against this machine; '' is the detected one. Raises ValueError.");
    module.def(
        "chosen_kernels",
        [](const std::string& isa) {
            py::dict chosen;
            for (const auto& entry : chosen_kernels(resolve_isa(isa))) chosen[py::str(entry.first)] = entry.second;
            return chosen;
        },
        py::arg("isa") = "", "Kernel family -> the level whose kernel runs.");
    module.def(
        "kernel_list",
        [] {
            py::list rows;
            for (const KernelInfo& k : kernel_list())
                rows.append(py::dict(py::arg("family") = k.family, py::arg("isa") = isa_name(k.isa),
                                     py::arg("mr") = k.mr, py::arg("nr") = k.nr, py::arg("kr") = k.kr,
                                     py::arg("compiled") = k.compiled));
            return rows;
        },
        "Every kernel of the build.");
    bind_kernels(module);
    bind_encoder(module);
    bind_kv_cache(module);
    bind_decoder(module);
    bind_pruning(module);
}
