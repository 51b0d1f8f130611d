// Activations quantised per token, in rows, for the kernels of few tokens.
#include <cstring>
#include <memory>

#include "panels.h"

namespace approxrt {
namespace {

std::unique_ptr<Tokens> quantize_tokens(const py::array& x_any, const std::string& isa) {
    auto x = typed<float>(x_any, 2, "x");
    auto tokens = std::make_unique<Tokens>(x.shape(0), x.shape(1));
    table(isa).quantize_tokens({.x = x.data(), .ldx = x.shape(1), .to = tokens->rows});
    return tokens;
}

// Tokens from integers, for products over the whole range of values.
std::unique_ptr<Tokens> tokens_from_int8(const py::array& q_any) {
    auto q = typed<int8_t>(q_any, 2, "q");
    auto tokens = std::make_unique<Tokens>(q.shape(0), q.shape(1));
    const TokenRows& rows = tokens->rows;
    std::memset(rows.sums, 0, tokens->sums.size());
    for (int64_t t = 0; t < rows.rows; ++t) {
        rows.scales[t] = 1.0f;
        for (int64_t i = 0; i < rows.ld; ++i) {
            const int value = i < rows.k ? q.at(t, i) : 0;
            rows.q[t * rows.ld + i] = static_cast<int8_t>(value);
            rows.u[t * rows.ld + i] = static_cast<uint8_t>(value + 128);
            rows.sums[t * (rows.ld / kGroupWeights) + i / kGroupWeights] += value;
        }
    }
    return tokens;
}

py::tuple unpack(const Tokens& tokens) {
    const TokenRows& rows = tokens.rows;
    Array<int8_t> q({static_cast<int64_t>(rows.rows), rows.ld});
    Array<uint8_t> u({static_cast<int64_t>(rows.rows), rows.ld});
    Array<int32_t> sums({static_cast<int64_t>(rows.rows), rows.ld / kGroupWeights});
    Array<float> scales(rows.rows);
    std::memcpy(q.mutable_data(), rows.q, tokens.q.size());
    std::memcpy(u.mutable_data(), rows.u, tokens.u.size());
    std::memcpy(sums.mutable_data(), rows.sums, tokens.sums.size());
    std::memcpy(scales.mutable_data(), rows.scales, sizeof(float) * rows.rows);
    return py::make_tuple(q, u, sums, scales);
}

}  // namespace

void bind_tokens(py::module_& module) {
    py::class_<Tokens>(module, "Tokens", "Activations quantised per token, in rows, for the kernels of few tokens.")
        .def("unpack", &unpack, "(q int8, u uint8 [rows, round_up(k, 64)], sums int32 [rows, .. / 32], scales)");
    module.def("quantize_tokens", &quantize_tokens, py::arg("x"), py::arg("isa") = "");
    module.def("tokens_from_int8", &tokens_from_int8, py::arg("q"), "Tokens with given integers and scales of 1.");
}

}  // namespace approxrt
