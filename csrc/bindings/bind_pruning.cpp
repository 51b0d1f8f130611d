// Scores of tiles for pruning, and their kernel by itself for tests and benchmarks.
#include "../pruning/tile_curve.h"
#include "panels.h"

namespace approxrt {
namespace {

Array<double> tile_curve_of(const py::array& weight_any, const py::array& inverse_any, const py::array& rows_any,
                            double share, int32_t at_once, const std::string& isa, int threads) {
    auto weight = typed<float>(weight_any, 2, "weight");
    auto inverse = typed<double>(inverse_any, 2, "inverse");
    auto rows = typed<double>(rows_any, 1, "row_weights");
    const auto n = static_cast<int32_t>(weight.shape(0)), k = static_cast<int32_t>(weight.shape(1));
    expect(n > 0 && k > 0, "weight is empty");
    expect(inverse.shape(0) == k && inverse.shape(1) == k, "inverse needs a row and a column an input");
    expect(rows.shape(0) == n, "row_weights needs one value an output");
    expect(share >= 0 && share <= 1 && at_once >= 0, "share must be from 0 to 1, at_once not negative");
    expect(threads >= 1, "threads must be positive");
    Array<double> scores({round_up(n, kTileN) / kTileN, round_up(k, kTileK) / kTileK});
    const TileCurveArgs args{weight.data(), n, k, inverse.data(), rows.data(), share, at_once, scores.mutable_data()};
    const KernelTable& kernels = table(isa);
    py::gil_scoped_release release;
    tile_curve(kernels, *ThreadPool::get(threads), args);
    return scores;
}

// The complement [n, n], both triangles of it, of the last m rows and columns of `a`.
Array<double> schur_complement(const py::array& a_any, int32_t m, const std::string& isa) {
    auto a = typed<double>(a_any, 2, "a");
    const int64_t whole = a.shape(0), n = whole - m, ld = round_up(whole, kSchurPanel);
    expect(a.shape(1) == whole && n > 0, "a must be square, with more rows than go");
    expect(m > 0 && m % kTileK == 0, "m must be a multiple of " + std::to_string(kTileK));
    AlignedBuffer matrix(sizeof(double) * ld * ld), factor(sizeof(double) * m * m), copy(sizeof(double) * m * m),
        u(sizeof(double) * schur_scratch_doubles(n, m));
    std::memset(matrix.as<double>(), 0, matrix.size());
    for (int64_t i = 0; i < whole; ++i)
        std::memcpy(matrix.as<double>() + i * ld, a.data(i, 0), sizeof(double) * (i + 1));
    for (int64_t i = 0; i < m; ++i) std::memcpy(factor.as<double>() + i * m, a.data(n + i, n), sizeof(double) * m);
    Array<double> out({n, n});
    {
        py::gil_scoped_release release;
        upper_cholesky(factor.as<double>(), copy.as<double>(), m);
        table(isa).schur_complement(
            {matrix.as<double>(), ld, static_cast<int32_t>(n), m, factor.as<double>(), u.as<double>()});
    }
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j <= i; ++j) out.mutable_at(i, j) = out.mutable_at(j, i) = matrix.as<double>()[i * ld + j];
    return out;
}

}  // namespace

void bind_pruning(py::module_& module) {
    module.def("tile_curve", &tile_curve_of, py::arg("weight"), py::arg("inverse"), py::arg("row_weights"),
               py::arg("share"), py::arg("at_once") = 0, py::arg("isa") = "", py::arg("threads") = 1,
               "float64[strips, columns]: the rho at which each tile of float32[n, k] goes (block OBS), from the "
               "inverse float64[k, k] of its inputs' second moments and a weight an output.");
}

void bind_schur_complement(py::module_& kernels) {
    kernels.def("schur_complement", &schur_complement, py::arg("a"), py::arg("m"), py::arg("isa") = "",
                "float64[n, n]: what of a symmetric float64[n + m, n + m] remains without its last m unknowns.");
}

}  // namespace approxrt
