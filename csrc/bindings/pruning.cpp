// Scores of tiles for pruning.
#include "pruning/tile_curve.h"
#include "arrays.h"

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
    const TileCurveArgs args{.weight = weight.data(),
                             .n = n,
                             .k = k,
                             .inverse = inverse.data(),
                             .row_weights = rows.data(),
                             .share = share,
                             .at_once = at_once,
                             .scores = scores.mutable_data()};
    const KernelTable& kernels = kernels_for(resolve_isa(isa));
    py::gil_scoped_release release;
    tile_curve(kernels, *ThreadPool::get(threads), args);
    return scores;
}

}  // namespace

void bind_pruning(py::module_& module) {
    module.def("tile_curve", &tile_curve_of, py::arg("weight"), py::arg("inverse"), py::arg("row_weights"),
               py::arg("share"), py::arg("at_once") = 0, py::arg("isa") = "", py::arg("threads") = 1,
               "float64[strips, columns]: the rho at which each tile of float32[n, k] goes (block OBS), from the "
               "inverse float64[k, k] of its inputs' second moments and a weight an output.");
}

}  // namespace approxrt
