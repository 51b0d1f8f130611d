// Schur complement of the last m unknowns on Doubles: U = R^-T A[n:, :n], then A[:n, :n] -= U^T U below the diagonal.
//
// U is kept in panels of 3 W columns, [panel][m][3 W]: both operands of the product are read from them in one stream,
// whatever A's stride is. A register tile is W rows x 3 W columns of A, 3 W accumulators: 24 of 32 registers with
// AVX-512, 12 of 16 with AVX2, so that a step's 3 W products (two a cycle, four cycles each) depend on nothing that is
// still under way and need three loads and W broadcasts. A block of kRowPanels panels of rows passes over the panels of
// columns together: at m = 150 they are 120 KB in L2, and all of U is read a fourth as often.
// Sums run over the eliminated unknowns in order, each with one accumulator. Panels behind n hold zeros.
#pragma once

#include "pruning_args.h"

namespace approxrt {
namespace {

constexpr int kLanes = Doubles::kWidth, kPanel = 3 * kLanes, kRowPanels = 4;
static_assert(kSchurPanel % kPanel == 0 && kPanel % kLanes == 0, "whole panels in a row's padding");

// The panel's columns of A[n:], then R^-T of them, four rows at a time.
inline void solve_panel(const SchurComplementArgs& s, int64_t column, double* u) {
    const int64_t m = s.m, whole = s.n - column < kPanel ? s.n - column : kPanel;
    for (int64_t t = 0; t < m; ++t)
        for (int64_t j = 0; j < kPanel; ++j) u[t * kPanel + j] = j < whole ? s.a[(s.n + t) * s.ld + column + j] : 0.0;
    for (int64_t t = 0; t < m; t += kTileK) {
        Doubles x[kTileK][3];
        for (int i = 0; i < kTileK; ++i)
            for (int v = 0; v < 3; ++v) x[i][v] = load(u + (t + i) * kPanel + v * kLanes);
        for (int64_t before = 0; before < t; ++before) {
            const double* row = u + before * kPanel;
            const Doubles u0 = load(row), u1 = load(row + kLanes), u2 = load(row + 2 * kLanes);
            for (int i = 0; i < kTileK; ++i) {
                const Doubles factor = set1(s.factor[before * m + t + i]);
                x[i][0] = fnma(factor, u0, x[i][0]);
                x[i][1] = fnma(factor, u1, x[i][1]);
                x[i][2] = fnma(factor, u2, x[i][2]);
            }
        }
        for (int i = 0; i < kTileK; ++i) {
            for (int before = 0; before < i; ++before) {
                const Doubles factor = set1(s.factor[(t + before) * m + t + i]);
                for (int v = 0; v < 3; ++v) x[i][v] = fnma(factor, x[before][v], x[i][v]);
            }
            const Doubles diagonal = set1(s.factor[(t + i) * m + t + i]);
            for (int v = 0; v < 3; ++v) {
                x[i][v] = div(x[i][v], diagonal);
                store(u + (t + i) * kPanel + v * kLanes, x[i][v]);
            }
        }
    }
}

// W rows (from `rows`, which points into a panel) by a panel of columns.
inline void subtract_product(const double* rows, const double* columns, int64_t m, double* a, int64_t ld) {
    Doubles sum[kLanes][3];
    for (int i = 0; i < kLanes; ++i) {
        __builtin_prefetch(a + i * ld, 1);
        __builtin_prefetch(a + i * ld + kPanel - 1, 1);
        for (int v = 0; v < 3; ++v) sum[i][v] = zero();
    }
    for (int64_t t = 0; t < m; ++t, rows += kPanel, columns += kPanel) {
        const Doubles c0 = load(columns), c1 = load(columns + kLanes), c2 = load(columns + 2 * kLanes);
        for (int i = 0; i < kLanes; ++i) {
            const Doubles r = set1(rows[i]);
            sum[i][0] = fma(r, c0, sum[i][0]);
            sum[i][1] = fma(r, c1, sum[i][1]);
            sum[i][2] = fma(r, c2, sum[i][2]);
        }
    }
    for (int i = 0; i < kLanes; ++i)
        for (int v = 0; v < 3; ++v) {
            double* at = a + i * ld + v * kLanes;
            store(at, sub(load(at), sum[i][v]));
        }
}

inline void schur_complement(const SchurComplementArgs& s) {
    const int64_t panels = (s.n + kPanel - 1) / kPanel, size = kPanel * static_cast<int64_t>(s.m);
    for (int64_t p = 0; p < panels; ++p) solve_panel(s, p * kPanel, s.u + p * size);
    for (int64_t block = 0; block < panels; block += kRowPanels) {
        const int64_t end = block + kRowPanels < panels ? block + kRowPanels : panels;
        for (int64_t c = 0; c < end; ++c)
            for (int64_t r = c > block ? c : block; r < end; ++r)
                for (int64_t i = 0; i < kPanel; i += kLanes)
                    subtract_product(s.u + r * size + i, s.u + c * size, s.m,
                                     s.a + (r * kPanel + i) * s.ld + c * kPanel, s.ld);
    }
}

}  // namespace
}  // namespace approxrt
