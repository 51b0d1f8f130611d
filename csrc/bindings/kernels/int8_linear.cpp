// Packed int8 weights and the products with them.
#include "panels.h"

namespace approxrt {
namespace {

struct Int8Linear {
    const KernelTable* kernels;
    Int8Weights weights;

    void run(const Panels& p, float* y, int32_t* accumulators, const float* residual, Act act) const {
        const PackedInt8& w = weights.packed();
        p.check(kernels->layout, w.k);
        const int64_t padded = static_cast<int64_t>(w.strips) * kTileN;
        GemmInt8Args a{.panels = p.data.as<void>(),
                       .act_scales = p.scales.as<float>(),
                       .rows = p.rows,
                       .w = &w,
                       .strip_begin = 0,
                       .strip_end = w.strips,
                       .y = y,
                       .ldy = padded,
                       .y_strip = kTileN,
                       .residual = residual,
                       .ldr = padded,
                       .act = act,
                       .accumulators = accumulators};
        py::gil_scoped_release release;
        kernels->gemm_int8(a);
    }
};

py::tuple int8_gemv(const Int8Linear& self, const Tokens& tokens) {
    const PackedInt8& w = self.weights.packed();
    tokens.check(w.k);
    expect(self.kernels->layout.element_size == 1, "gemv_int8 reads the byte order of scalar and VNNI weights");
    const int64_t padded = static_cast<int64_t>(w.strips) * kTileN, rows = tokens.rows.rows;
    Array<float> y({rows, padded});
    Array<int32_t> accumulators({rows, padded});
    const GemvInt8Args a{.common = {.panels = nullptr,
                                    .act_scales = tokens.rows.scales,
                                    .rows = tokens.rows.rows,
                                    .w = &w,
                                    .strip_begin = 0,
                                    .strip_end = w.strips,
                                    .y = y.mutable_data(),
                                    .ldy = padded,
                                    .y_strip = kTileN,
                                    .residual = nullptr,
                                    .ldr = 0,
                                    .act = Act::kIdentity,
                                    .accumulators = accumulators.mutable_data()},
                         .x = &tokens.rows,
                         .panel_rows = self.kernels->layout.mr};
    {
        py::gil_scoped_release release;
        self.kernels->gemv_int8(a);
    }
    return py::make_tuple(y, accumulators);
}

Int8Linear dense_linear(const py::array& q_any, const py::array& scale_any, const py::array& bias_any,
                        const std::string& isa) {
    auto q = typed<int8_t>(q_any, 2, "q");
    auto scale = typed<float>(scale_any, 1, "scale"), bias = typed<float>(bias_any, 1, "bias");
    const auto n = static_cast<int32_t>(q.shape(0)), k = static_cast<int32_t>(q.shape(1));
    expect(scale.shape(0) == n && bias.shape(0) == n, "scale and bias need one value an output");
    return {&table(isa), Int8Weights::from_dense(table(isa), n, k, q.data(), scale.data(), bias.data())};
}

Int8Linear bsr_linear(int32_t n, int32_t k, const py::array& indptr_any, const py::array& indices_any,
                      const py::array& tiles_any, const py::array& scale_any, const py::array& bias_any,
                      const std::string& isa) {
    auto indptr = typed<int32_t>(indptr_any, 1, "indptr");
    auto indices = typed<uint16_t>(indices_any, 1, "indices");
    auto tiles = typed<int8_t>(tiles_any, 3, "tiles");
    auto scale = typed<float>(scale_any, 1, "scale"), bias = typed<float>(bias_any, 1, "bias");
    const int64_t strips = round_up(n, kTileN) / kTileN, groups = round_up(k, kTileK) / kTileK;
    expect(indptr.shape(0) == strips + 1 && indptr.at(0) == 0, "indptr needs strips + 1 entries from 0");
    for (int64_t g = 0; g < strips; ++g) expect(indptr.at(g) <= indptr.at(g + 1), "indptr must not descend");
    const int64_t count = indptr.at(strips);
    expect(indices.shape(0) == count && tiles.shape(0) == count && tiles.shape(1) == kTileN && tiles.shape(2) == kTileK,
           "indices and tiles [nnz, 16, 4] need indptr's number of tiles");
    for (int64_t t = 0; t < count; ++t) expect(indices.at(t) < groups, "tile index out of range");
    expect(scale.shape(0) == n && bias.shape(0) == n, "scale and bias need one value an output");
    return {&table(isa), Int8Weights::from_bsr(table(isa), n, k, indptr.data(), indices.data(), tiles.data(),
                                               scale.data(), bias.data())};
}

Array<float> int8_forward(const Int8Linear& self, const Panels& p, const py::object& residual_any,
                          const std::string& act) {
    const PackedInt8& w = self.weights.packed();
    const int64_t padded = static_cast<int64_t>(w.strips) * kTileN;
    Array<float> y({static_cast<int64_t>(p.rows), padded});
    const float* residual = nullptr;
    Array<float> held;
    if (!residual_any.is_none()) {
        held = typed<float>(residual_any, 2, "residual");
        expect(held.shape(0) == p.rows && held.shape(1) == padded, "residual must be [rows, round_up(n, 16)]");
        residual = held.data();
    }
    self.run(p, y.mutable_data(), nullptr, residual, parse_act(act));
    return y;
}

Array<int32_t> int8_accumulate(const Int8Linear& self, const Panels& p) {
    const int64_t padded = static_cast<int64_t>(self.weights.packed().strips) * kTileN;
    Array<int32_t> accumulators({static_cast<int64_t>(p.rows), padded});
    AlignedBuffer y(sizeof(float) * p.rows * padded);
    self.run(p, y.as<float>(), accumulators.mutable_data(), nullptr, Act::kIdentity);
    return accumulators;
}

}  // namespace

void bind_int8_linear(py::module_& module) {
    py::class_<Int8Linear>(module, "Int8Linear", "Packed int8 weights, dense or block-sparse.")
        .def_static("dense", &dense_linear, py::arg("q"), py::arg("scale"), py::arg("bias"), py::arg("isa") = "")
        .def_static("bsr", &bsr_linear, py::arg("n"), py::arg("k"), py::arg("indptr"), py::arg("indices"),
                    py::arg("tiles"), py::arg("scale"), py::arg("bias"), py::arg("isa") = "")
        .def("accumulate", &int8_accumulate, py::arg("panels"), "Corrected int32 sums [rows, round_up(n, 16)].")
        .def("forward", &int8_forward, py::arg("panels"), py::arg("residual") = py::none(), py::arg("act") = "identity",
             "float32 [rows, round_up(n, 16)].")
        .def("gemv", &int8_gemv, py::arg("tokens"),
             "(float32, int32 sums), both [rows, round_up(n, 16)], by the kernel of few tokens.")
        .def_property(
            "token_lanes", [](const Int8Linear& l) { return l.weights.packed().token_lanes; },
            [](Int8Linear& l, bool on) {
                expect(!on || (l.kernels->isa == Isa::kAvx512Vnni && l.weights.packed().offsets),
                       "only sparse weights of level avx512vnni can be multiplied with tokens in lanes");
                l.weights.set_token_lanes(on);
            },
            "Whether products have tokens, not outputs, in a register's lanes: what suits the CPU, until it is set.")
        .def_property_readonly("tiles",
                               [](const Int8Linear& l) { return l.weights.packed().indptr[l.weights.packed().strips]; })
        .def_property_readonly("bytes", [](const Int8Linear& l) { return l.weights.bytes(); });
}

}  // namespace approxrt
