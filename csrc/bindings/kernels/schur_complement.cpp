// Schur complements of symmetric matrices.
#include <cstring>

#include "pruning/tile_curve.h"
#include "panels.h"

namespace approxrt {
namespace {

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
        table(isa).schur_complement({.a = matrix.as<double>(),
                                     .ld = ld,
                                     .n = static_cast<int32_t>(n),
                                     .m = m,
                                     .factor = factor.as<double>(),
                                     .u = u.as<double>()});
    }
    for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j <= i; ++j) out.mutable_at(i, j) = out.mutable_at(j, i) = matrix.as<double>()[i * ld + j];
    return out;
}

}  // namespace

void bind_schur_complement(py::module_& module) {
    module.def("schur_complement", &schur_complement, py::arg("a"), py::arg("m"), py::arg("isa") = "",
               "float64[n, n]: what of a symmetric float64[n + m, n + m] remains without its last m unknowns.");
}

}  // namespace approxrt
