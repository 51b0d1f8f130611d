// The int4 GEMM for tests and benchmarks, at a level of the caller's choice.
#include "bindings/int4_arrays.h"
#include "panels.h"

namespace approxrt {
namespace {

struct Int4Linear {
    const KernelTable* kernels;
    Int4Weights weights;

    int64_t padded() const { return static_cast<int64_t>(weights.packed().linear.strips) * kTileN; }

    void run(const Panels& p, float* y, int32_t* accumulators, const float* residual, Act act) const {
        const PackedInt4& w = weights.packed();
        p.check(kernels->int4_layout, w.linear.k);
        const GemmInt4Args a{.common = {.panels = p.data.as<void>(),
                                        .act_scales = p.scales.as<float>(),
                                        .rows = p.rows,
                                        .w = &w.linear,
                                        .strip_begin = 0,
                                        .strip_end = w.linear.strips,
                                        .y = y,
                                        .ldy = padded(),
                                        .y_strip = kTileN,
                                        .residual = residual,
                                        .ldr = padded(),
                                        .act = act,
                                        .accumulators = accumulators},
                             .w = &w};
        py::gil_scoped_release release;
        kernels->gemm_int4(a);
    }
};

Array<int32_t> gemv_accumulate(const Int4Linear& self, const Tokens& tokens, Array<float>& y) {
    const PackedInt4& w = self.weights.packed();
    tokens.check(w.linear.k);
    const int64_t rows = tokens.rows.rows;
    y = Array<float>({rows, self.padded()});
    Array<int32_t> accumulators({rows, self.padded()});
    const GemvInt4Args a{.common = {.common = {.panels = nullptr,
                                               .act_scales = tokens.rows.scales,
                                               .rows = tokens.rows.rows,
                                               .w = &w.linear,
                                               .strip_begin = 0,
                                               .strip_end = w.linear.strips,
                                               .y = y.mutable_data(),
                                               .ldy = self.padded(),
                                               .y_strip = kTileN,
                                               .residual = nullptr,
                                               .ldr = 0,
                                               .act = Act::kIdentity,
                                               .accumulators = accumulators.mutable_data()},
                                    .w = &w},
                         .x = &tokens.rows,
                         .panel_rows = self.kernels->int4_layout.mr};
    py::gil_scoped_release release;
    self.kernels->gemv_int4(a);
    return accumulators;
}

Int4Linear dense_linear(int32_t k, const py::array& q4, const py::array& group_scale, const py::array& scale_any,
                        const py::array& bias_any, const std::string& isa) {
    auto scale = typed<float>(scale_any, 1, "scale"), bias = typed<float>(bias_any, 1, "bias");
    const auto n = static_cast<int32_t>(scale.shape(0));
    expect(n > 0 && k > 0 && bias.shape(0) == n, "scale and bias need one value an output");
    return {&table(isa), int4_from_dense(table(isa), n, k, q4, group_scale, scale.data(), bias.data(), "")()};
}

Int4Linear bsr_linear(int32_t k, const py::array& indptr, const py::array& indices, const py::array& tiles,
                      const py::array& group_scale, const py::array& scale_any, const py::array& bias_any,
                      const std::string& isa) {
    auto scale = typed<float>(scale_any, 1, "scale"), bias = typed<float>(bias_any, 1, "bias");
    const auto n = static_cast<int32_t>(scale.shape(0));
    expect(n > 0 && k > 0 && bias.shape(0) == n, "scale and bias need one value an output");
    return {&table(isa),
            int4_from_bsr(table(isa), n, k, indptr, indices, tiles, group_scale, scale.data(), bias.data(), "")()};
}

Array<float> forward(const Int4Linear& self, const Panels& p, const py::object& residual_any, const std::string& act) {
    Array<float> y({static_cast<int64_t>(p.rows), self.padded()}), held;
    const float* residual = nullptr;
    if (!residual_any.is_none()) {
        held = typed<float>(residual_any, 2, "residual");
        expect(held.shape(0) == p.rows && held.shape(1) == self.padded(), "residual must be [rows, round_up(n, 16)]");
        residual = held.data();
    }
    self.run(p, y.mutable_data(), nullptr, residual, parse_act(act));
    return y;
}

Array<int32_t> accumulate(const Int4Linear& self, const Panels& p) {
    Array<int32_t> accumulators({static_cast<int64_t>(p.rows), self.padded()});
    AlignedBuffer y(sizeof(float) * p.rows * self.padded());
    self.run(p, y.as<float>(), accumulators.mutable_data(), nullptr, Act::kIdentity);
    return accumulators;
}

}  // namespace

void bind_int4_linear(py::module_& module) {
    py::class_<Int4Linear>(module, "Int4Linear", "Packed int4 weights with group scales, dense or block-sparse.")
        .def_static("dense", &dense_linear, py::arg("k"), py::arg("q4"), py::arg("group_scale"), py::arg("scale"),
                    py::arg("bias"), py::arg("isa") = "")
        .def_static("bsr", &bsr_linear, py::arg("k"), py::arg("indptr"), py::arg("indices"), py::arg("tiles4"),
                    py::arg("group_scale"), py::arg("scale"), py::arg("bias"), py::arg("isa") = "")
        .def("accumulate", &accumulate, py::arg("panels"), "Corrected int32 sums [rows, round_up(n, 16)].")
        .def("forward", &forward, py::arg("panels"), py::arg("residual") = py::none(), py::arg("act") = "identity",
             "float32 [rows, round_up(n, 16)].")
        .def(
            "gemv",
            [](const Int4Linear& l, const Tokens& tokens) {
                Array<float> y;
                auto accumulators = gemv_accumulate(l, tokens, y);
                return py::make_tuple(y, accumulators);
            },
            py::arg("tokens"), "(float32, int32 sums), both [rows, round_up(n, 16)], by the kernel of few tokens.")
        .def_property_readonly("tiles",
                               [](const Int4Linear& l) {
                                   const PackedInt8& w = l.weights.packed().linear;
                                   return w.indptr[w.strips];
                               })
        .def_property_readonly("bytes", [](const Int4Linear& l) { return l.weights.bytes(); });
}

}  // namespace approxrt
