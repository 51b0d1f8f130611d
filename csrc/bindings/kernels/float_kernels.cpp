// Norms, activations, positions, attention: one call, one kernel.
#include <cstring>

#include "panels.h"

namespace approxrt {
namespace {

Array<float> layer_norm(const py::array& x_any, const py::array& gamma_any, const py::array& beta_any, float eps,
                        const std::string& isa) {
    auto x = typed<float>(x_any, 2, "x"), gamma = typed<float>(gamma_any, 1, "gamma"),
         beta = typed<float>(beta_any, 1, "beta");
    const auto rows = static_cast<int32_t>(x.shape(0)), width = static_cast<int32_t>(x.shape(1));
    expect(gamma.shape(0) == width && beta.shape(0) == width, "gamma and beta need one value a column");
    Array<float> y({rows, width});
    table(isa).layer_norm({.x = x.data(),
                           .ldx = width,
                           .rows = rows,
                           .width = width,
                           .gamma = gamma.data(),
                           .beta = beta.data(),
                           .eps = eps,
                           .y = y.mutable_data(),
                           .ldy = width});
    return y;
}

Array<float> softmax(const py::array& x_any, float scale, const std::string& isa, bool normalise) {
    auto x = typed<float>(x_any, 2, "x");
    const auto rows = static_cast<int32_t>(x.shape(0)), n = static_cast<int32_t>(x.shape(1));
    expect(n > 0, "x has no columns");
    Array<float> y({rows, n}), inv(rows);
    std::memcpy(y.mutable_data(), x.data(), sizeof(float) * x.size());
    table(isa).softmax(
        {.x = y.mutable_data(), .ldx = n, .rows = rows, .n = n, .scale = scale, .inv_sum = inv.mutable_data()});
    for (int32_t i = 0; i < rows && normalise; ++i)
        for (int32_t j = 0; j < n; ++j) y.mutable_at(i, j) *= inv.at(i);
    return y;
}

Array<float> activation(const py::array& x_any, const std::string& act, const std::string& isa) {
    auto x = typed<float>(x_any, 1, "x");
    Array<float> y(x.shape(0));
    std::memcpy(y.mutable_data(), x.data(), sizeof(float) * x.size());
    table(isa).activation({.x = y.mutable_data(), .count = x.shape(0), .act = parse_act(act)});
    return y;
}

Array<float> attention(const py::array& q_any, const py::array& k_any, const py::array& v_any, float scale,
                       const std::string& isa, int32_t query_begin, int32_t query_end, bool int16,
                       const py::object& bias_any) {
    auto q = typed<float>(q_any, 2, "q"), k = typed<float>(k_any, 2, "k"), v = typed<float>(v_any, 2, "v");
    const auto queries = static_cast<int32_t>(q.shape(0));
    const auto n = static_cast<int32_t>(k.shape(0)), d = static_cast<int32_t>(k.shape(1));
    expect(n > 0 && d > 0 && q.shape(1) == d && v.shape(0) == n && v.shape(1) == d, "shapes of q, k, v do not fit");
    if (query_end < 0) query_end = queries;
    expect(0 <= query_begin && query_begin <= query_end && query_end <= queries, "query range out of range");
    Array<float> out({queries, d});
    std::memset(out.mutable_data(), 0, sizeof(float) * out.size());
    AlignedBuffer scratch(sizeof(float) * attention_scratch_floats(n, d));
    AttentionArgs a{.q = q.data(),
                    .k = k.data(),
                    .v = v.data(),
                    .ldq = d,
                    .q_strip = 16,
                    .ld = d,
                    .strip = 16,
                    .n = n,
                    .head_dim = d,
                    .query_begin = query_begin,
                    .query_end = query_end,
                    .scale = scale,
                    .out = out.mutable_data(),
                    .ldo = d,
                    .scratch = scratch.as<float>()};
    Array<float> bias;
    if (!bias_any.is_none()) {
        const bool matrix = py::cast<py::array>(bias_any).ndim() == 2;
        bias = typed<float>(bias_any, matrix ? 2 : 1, "bias");
        if (matrix)
            expect(bias.shape(0) == queries && bias.shape(1) == n, "bias must be [queries, keys]");
        else
            expect(bias.shape(0) == queries + n - 1, "bias needs queries + keys - 1 values");
        a.bias = bias.data() + (matrix ? 0 : queries - 1);
        a.ldb = matrix ? n : -1;
    }
    {
        py::gil_scoped_release release;
        (int16 ? table(isa).attention_int16 : table(isa).attention)(a);
    }
    return out;
}

Array<float> rms_norm(const py::array& x_any, const py::array& gamma_any, float eps, const std::string& isa) {
    auto x = typed<float>(x_any, 2, "x"), gamma = typed<float>(gamma_any, 1, "gamma");
    const auto rows = static_cast<int32_t>(x.shape(0)), width = static_cast<int32_t>(x.shape(1));
    expect(gamma.shape(0) == width, "gamma needs one value a column");
    Array<float> y({rows, width});
    table(isa).rms_norm({.x = x.data(),
                         .ldx = width,
                         .rows = rows,
                         .width = width,
                         .gamma = gamma.data(),
                         .eps = eps,
                         .y = y.mutable_data(),
                         .ldy = width});
    return y;
}

Array<float> rope(const py::array& x_any, const py::array& cos_any, const py::array& sin_any, const std::string& isa) {
    auto x = typed<float>(x_any, 3, "x"), cos = typed<float>(cos_any, 2, "cos"), sin = typed<float>(sin_any, 2, "sin");
    const auto rows = static_cast<int32_t>(x.shape(0)), heads = static_cast<int32_t>(x.shape(1)),
               dim = static_cast<int32_t>(x.shape(2));
    expect(dim % 2 == 0, "head_dim must be even");
    for (const auto* angles : {&cos, &sin})
        expect(angles->shape(0) == rows && angles->shape(1) == dim / 2, "cos and sin must be [rows, head_dim / 2]");
    Array<float> y({rows, heads, dim});
    std::memcpy(y.mutable_data(), x.data(), sizeof(float) * x.size());
    table(isa).rope({.x = y.mutable_data(),
                     .ldx = static_cast<int64_t>(heads) * dim,
                     .rows = rows,
                     .heads = heads,
                     .head_dim = dim,
                     .cos = cos.data(),
                     .sin = sin.data()});
    return y;
}

Array<float> gated(const py::array& gate_any, const py::array& up_any, const std::string& act, const std::string& isa) {
    auto gate = typed<float>(gate_any, 2, "gate"), up = typed<float>(up_any, 2, "up");
    const auto rows = static_cast<int32_t>(gate.shape(0)), width = static_cast<int32_t>(gate.shape(1));
    expect(up.shape(0) == rows && up.shape(1) == width, "gate and up must have the same shape");
    Array<float> y({rows, width});
    table(isa).gated({.gate = gate.data(),
                      .ldg = width,
                      .up = up.data(),
                      .ldu = width,
                      .y = y.mutable_data(),
                      .ldy = width,
                      .rows = rows,
                      .width = width,
                      .act = parse_act(act)});
    return y;
}

Array<float> hadamard(const py::array& x_any, int32_t size, const std::string& isa) {
    auto x = typed<float>(x_any, 2, "x");
    const auto rows = static_cast<int32_t>(x.shape(0)), width = static_cast<int32_t>(x.shape(1));
    expect(size >= 16 && size <= kLargestHadamard && (size & (size - 1)) == 0 && width % size == 0,
           "size must be a power of 2 from 16 to 128 that divides the width");
    Array<float> y({rows, width});
    table(isa).hadamard(
        {.x = x.data(), .ldx = width, .y = y.mutable_data(), .ldy = width, .rows = rows, .width = width, .size = size});
    return y;
}

}  // namespace

void bind_float_kernels(py::module_& module) {
    module.def("layer_norm", &layer_norm, py::arg("x"), py::arg("gamma"), py::arg("beta"), py::arg("eps"),
               py::arg("isa") = "");
    module.def("softmax", &softmax, py::arg("x"), py::arg("scale") = 1.0f, py::arg("isa") = "",
               py::arg("normalise") = true,
               "Softmax of rows; without `normalise` as the kernel leaves it: not yet divided by the row's sum.");
    module.def("activation", &activation, py::arg("x"), py::arg("act"), py::arg("isa") = "");
    module.def(
        "attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("scale"), py::arg("isa") = "",
        py::arg("query_begin") = 0, py::arg("query_end") = -1, py::arg("int16") = false, py::arg("bias") = py::none(),
        "One head over one sequence. bias [queries, keys] or, over j - i from 1 - queries on, [queries + keys - 1]: "
        "added to the scaled scores.");
    module.def("rms_norm", &rms_norm, py::arg("x"), py::arg("gamma"), py::arg("eps"), py::arg("isa") = "");
    module.def("rope", &rope, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("isa") = "",
               "x [rows, heads, head_dim] turned by cos, sin [rows, head_dim / 2].");
    module.def("gated", &gated, py::arg("gate"), py::arg("up"), py::arg("act") = "silu", py::arg("isa") = "");
    module.def("hadamard", &hadamard, py::arg("x"), py::arg("size"), py::arg("isa") = "");
}

}  // namespace approxrt
