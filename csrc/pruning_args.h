// What kernels for pruning are called with; conventions as in args.h.
#pragma once

#include "args.h"

namespace approxrt {

// Columns of a panel of `schur_complement` on every level divide this.
constexpr int kSchurPanel = 24;

// The Schur complement of the last `m` unknowns of a symmetric matrix A of n + m, of which the lower triangle is held:
//
//   U = R^-T A[n:, :n],  A[:n, :n] -= U^T U,  where A[n:, n:] = R^T R
//
// Entries above the diagonal of the first round_up(n, kSchurPanel) rows and columns are overwritten with what has no
// meaning, and so are rows and columns from n on: they must be there.
struct SchurComplementArgs {
    double* a;  // [round_up(n + m, kSchurPanel), ld], 64-byte aligned
    int64_t ld;
    int32_t n;
    int32_t m;             // a multiple of kTileK
    const double* factor;  // R: [m, m], upper triangle
    double* u;             // schur_scratch_doubles(n, m), 64-byte aligned: U, in an order of the level's own
};
constexpr int64_t schur_scratch_doubles(int64_t n, int64_t m) { return round_up(n, kSchurPanel) * m; }

}  // namespace approxrt
