// Schur complement of the last unknowns: the definition. Inner loops run along rows, so that a compiler may vectorise
// them; no sum is reordered by it.
#include "pruning_args.h"

namespace approxrt {

void schur_complement_scalar(const SchurComplementArgs& s) {
    for (int64_t t = 0; t < s.m; ++t) {
        double* u = s.u + t * s.n;
        for (int64_t j = 0; j < s.n; ++j) u[j] = s.a[(s.n + t) * s.ld + j];
        for (int64_t before = 0; before < t; ++before) {
            const double factor = s.factor[before * s.m + t];
            for (int64_t j = 0; j < s.n; ++j) u[j] -= factor * s.u[before * s.n + j];
        }
        for (int64_t j = 0; j < s.n; ++j) u[j] /= s.factor[t * s.m + t];
    }
    for (int64_t i = 0; i < s.n; ++i) {
        double* row = s.a + i * s.ld;
        for (int64_t t = 0; t < s.m; ++t) {
            const double* u = s.u + t * s.n;
            for (int64_t j = 0; j <= i; ++j) row[j] -= u[i] * u[j];
        }
    }
}

}  // namespace approxrt
