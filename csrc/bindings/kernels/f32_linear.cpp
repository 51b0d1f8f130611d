// Packed float32 weights and the products with them.
#include <utility>

#include "panels.h"

namespace approxrt {
namespace {

// float32 weights packed once, for products timed without the packing.
struct F32Linear {
    F32Weights weights;
    int32_t k;

    F32Linear(const py::array& w_any, const py::array& bias_any) : F32Linear(checked(w_any, bias_any)) {}

    Array<float> forward(const py::array& x_any, const std::string& act, const std::string& isa) const {
        auto x = typed<float>(x_any, 2, "x");
        expect(x.shape(1) == k, "shapes of x, w and bias do not fit");
        const auto rows = static_cast<int32_t>(x.shape(0));
        const PackedF32& p = weights.packed();
        const int64_t padded = static_cast<int64_t>(p.strips) * kTileN;
        Array<float> y({static_cast<int64_t>(rows), padded});
        table(isa).gemm_f32({.x = x.data(),
                             .ldx = k,
                             .rows = rows,
                             .w = &p,
                             .strip_begin = 0,
                             .strip_end = p.strips,
                             .y = y.mutable_data(),
                             .ldy = padded,
                             .y_strip = kTileN,
                             .residual = nullptr,
                             .ldr = 0,
                             .act = parse_act(act)});
        return y;
    }

  private:
    using Checked = std::pair<Array<float>, Array<float>>;

    static Checked checked(const py::array& w_any, const py::array& bias_any) {
        auto w = typed<float>(w_any, 2, "w"), bias = typed<float>(bias_any, 1, "bias");
        expect(bias.shape(0) == w.shape(0), "shapes of x, w and bias do not fit");
        return {w, bias};
    }

    explicit F32Linear(const Checked& c)
        : weights(static_cast<int32_t>(c.first.shape(0)), static_cast<int32_t>(c.first.shape(1)), c.first.data(),
                  c.second.data()),
          k(static_cast<int32_t>(c.first.shape(1))) {}
};

Array<float> gemm_f32(const py::array& x, const py::array& w, const py::array& bias, const std::string& act,
                      const std::string& isa) {
    return F32Linear(w, bias).forward(x, act, isa);
}

}  // namespace

void bind_f32_linear(py::module_& module) {
    py::class_<F32Linear>(module, "F32Linear", "Packed float32 weights.")
        .def(py::init<const py::array&, const py::array&>(), py::arg("w"), py::arg("bias"))
        .def("forward", &F32Linear::forward, py::arg("x"), py::arg("act") = "identity", py::arg("isa") = "",
             "float32 [rows, round_up(n, 16)].");
    module.def("gemm_f32", &gemm_f32, py::arg("x"), py::arg("w"), py::arg("bias"), py::arg("act") = "identity",
               py::arg("isa") = "");
}

}  // namespace approxrt
