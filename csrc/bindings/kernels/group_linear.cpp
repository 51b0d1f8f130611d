// The GEMM of weights with float16 scales a group for tests and benchmarks, at a level of the caller's choice.
#include "bindings/group_arrays.h"
#include "panels.h"

namespace approxrt {
namespace {

// Activations of one call.
struct GroupedRows {
    GroupPanels layout;
    int32_t rows, k;
    AlignedBuffer data, scales;

    GroupedRows(int32_t mr, int64_t rows_, int64_t k_)
        : layout{mr},
          rows(static_cast<int32_t>(rows_)),
          k(static_cast<int32_t>(k_)),
          data(layout.bytes(rows_, k_)),
          scales(sizeof(float) * rows_) {}
};

// In the level's own panels, or (few) in one of just these rows.
std::unique_ptr<GroupedRows> quantize_groups(const py::array& x_any, const std::string& isa, bool few) {
    auto x = typed<float>(x_any, 2, "x");
    const KernelTable& t = table(isa);
    expect(x.shape(0) > 0 && x.shape(1) > 0, "the activations are empty");
    expect(!few || x.shape(0) <= kGemvTokens, "few are at most " + std::to_string(kGemvTokens) + " tokens");
    const auto mr = few ? static_cast<int32_t>(x.shape(0)) : t.layout.mr;
    auto to = std::make_unique<GroupedRows>(mr, x.shape(0), x.shape(1));
    t.quantize_groups({.x = x.data(),
                       .ldx = x.shape(1),
                       .rows = to->rows,
                       .k = to->k,
                       .mr = mr,
                       .panels = to->data.as<void>(),
                       .scales = to->scales.as<float>()});
    return to;
}

py::tuple unpack(const GroupedRows& r) {
    const int64_t groups = GroupWeights::groups_of(r.k), mr = r.layout.mr;
    Array<int8_t> a({static_cast<int64_t>(r.rows), groups * kGroupWeights});
    Array<int32_t> shifts({static_cast<int64_t>(r.rows), groups});
    Array<float> sums({static_cast<int64_t>(r.rows), groups}), scales(r.rows);
    std::memcpy(scales.mutable_data(), r.scales.as<float>(), sizeof(float) * r.rows);
    for (int64_t t = 0; t < r.rows; ++t)
        for (int64_t g = 0; g < groups; ++g) {
            const char* block = r.data.as<char>() + t / mr * r.layout.panel_bytes(r.k) + g * mr * kGroupTokenBytes;
            for (int i = 0; i < kGroupWeights; ++i)
                a.mutable_at(t, g * kGroupWeights + i) =
                    static_cast<int8_t>(block[(i / kTileK * mr + t % mr) * kTileK + i % kTileK]);
            std::memcpy(&shifts.mutable_at(t, g), block + kGroupWeights * mr + t % mr * 4, 4);
            std::memcpy(&sums.mutable_at(t, g), block + (kGroupWeights + 4) * mr + t % mr * 4, 4);
        }
    return py::make_tuple(a, shifts, sums, scales);
}

struct GroupLinear {
    const KernelTable* kernels;
    GroupWeights weights;
};

GroupLinear nibbles_linear(int32_t k, const py::array& q4, const py::array& scale, const py::array& offset,
                           const py::array& bias_any, const std::string& isa) {
    auto bias = typed<float>(bias_any, 1, "bias");
    const auto n = static_cast<int32_t>(bias.shape(0));
    expect(n > 0 && k > 0, "the weights are empty");
    return {&table(isa), group_nibbles(n, k, q4, scale, offset, bias.data(), "")()};
}

GroupLinear sixes_linear(int32_t k, const py::array& q4, const py::array& q2, const py::array& scale,
                         const py::array& bias_any, const std::string& isa) {
    auto bias = typed<float>(bias_any, 1, "bias");
    const auto n = static_cast<int32_t>(bias.shape(0));
    expect(n > 0 && k > 0, "the weights are empty");
    return {&table(isa), group_sixes(n, k, q4, q2, scale, bias.data(), "")()};
}

GroupLinear bytes_linear(const py::array& q, const py::array& scale, const py::array& bias_any,
                         const std::string& isa) {
    auto bias = typed<float>(bias_any, 1, "bias");
    expect(bias.shape(0) > 0 && q.ndim() == 2 && q.shape(1) > 0, "the weights are empty");
    const auto n = static_cast<int32_t>(bias.shape(0)), k = static_cast<int32_t>(q.shape(1));
    return {&table(isa), group_bytes(n, k, q, scale, bias.data(), "")()};
}

Array<float> forward(const GroupLinear& self, const GroupedRows& in, const py::object& residual_any,
                     const std::string& act) {
    const PackedGroups& w = self.weights.packed();
    const int64_t padded = static_cast<int64_t>(w.strips) * kTileN;
    expect(in.k == w.k, "the activations have " + std::to_string(in.k) + " inputs, the weights " + std::to_string(w.k));
    expect(in.layout.mr == self.kernels->layout.mr || in.rows == in.layout.mr,
           "the activations were made for another instruction set");
    Array<float> y({static_cast<int64_t>(in.rows), padded}), held;
    const float* residual = nullptr;
    if (!residual_any.is_none()) {
        held = typed<float>(residual_any, 2, "residual");
        expect(held.shape(0) == in.rows && held.shape(1) == padded, "residual must be [rows, round_up(n, 16)]");
        residual = held.data();
    }
    const GemmGroupsArgs a{.panels = in.data.as<void>(),
                           .act_scales = in.scales.as<float>(),
                           .rows = in.rows,
                           .mr = in.layout.mr,
                           .w = &w,
                           .strip_begin = 0,
                           .strip_end = w.strips,
                           .y = y.mutable_data(),
                           .ldy = padded,
                           .y_strip = kTileN,
                           .residual = residual,
                           .ldr = padded,
                           .act = parse_act(act)};
    py::gil_scoped_release release;
    self.kernels->gemm_groups(a);
    return y;
}

}  // namespace

void bind_group_linear(py::module_& module) {
    py::class_<GroupedRows>(module, "GroupedRows", "Activations with a scale a token and a shift a group of 32 inputs.")
        .def("unpack", &unpack, "(a int8 [rows, 32 groups], shifts int32 and sums float32 [rows, groups], scales)");
    module.def("quantize_groups", &quantize_groups, py::arg("x"), py::arg("isa") = "", py::arg("few") = false);
    py::class_<GroupLinear>(module, "GroupLinear", "Packed weights with float16 scales a group.")
        .def_static("nibbles", &nibbles_linear, py::arg("k"), py::arg("q4"), py::arg("group_scale"),
                    py::arg("group_offset"), py::arg("bias"), py::arg("isa") = "")
        .def_static("sixes", &sixes_linear, py::arg("k"), py::arg("q4"), py::arg("q2"), py::arg("group_scale"),
                    py::arg("bias"), py::arg("isa") = "")
        .def_static("bytes", &bytes_linear, py::arg("q"), py::arg("group_scale"), py::arg("bias"), py::arg("isa") = "")
        .def("forward", &forward, py::arg("rows"), py::arg("residual") = py::none(), py::arg("act") = "identity",
             "float32 [rows, round_up(n, 16)].")
        .def_property_readonly("size", [](const GroupLinear& l) { return l.weights.bytes(); });
}

}  // namespace approxrt
