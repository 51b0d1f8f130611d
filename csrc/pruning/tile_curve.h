// Block Optimal Brain Surgeon: in which order the tiles of a linear go, and what the loss gains by each.
#pragma once

#include "dispatch.h"
#include "thread_pool.h"

namespace approxrt {

// Each strip of kTileN outputs loses its tiles by itself, starting from the same P = H^-1. A step removes the tiles S
// of the smallest rho(S) = 1/2 sum_r G_r w_rS (P_SS)^-1 w_rS^T, each by itself; it leaves W - W_S (P_SS)^-1 P_S, and P
// - P_,S (P_SS)^-1 P_S, (Hassibi & Stork 1992; blocks: Kurtic et al. 2022, arXiv 2203.07259), exactly for all of them
// together. What they cost together is dealt out in proportion to their own rho, and no tile has less than one of an
// earlier step. All of it is float64.
struct TileCurveArgs {
    const float* weight;  // W [n, k]
    int32_t n, k;
    const double* inverse;      // P [k, k], symmetric
    const double* row_weights;  // G [n]
    double share;               // of a strip's remaining tiles that go in a step, at least one
    int32_t at_once;            // instead of a share, this many; 0: by `share`
    double* scores;             // out: [ceil(n / kTileN), ceil(k / kTileK)]
};

// Holds one matrix of about k * k float64 a thread. Throws std::bad_alloc before any work is done.
void tile_curve(const KernelTable& kernels, ThreadPool& pool, const TileCurveArgs& args);

// square [m, m], upper triangle <- R with R^T R = square, whose lower triangle is left alone; `copy` [m, m] is work
// space. Where rounding has left a matrix that has no R, it is that of one with a little more on its diagonal.
void upper_cholesky(double* square, double* copy, int64_t m);

}  // namespace approxrt
