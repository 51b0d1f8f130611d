#include "tile_curve.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "pack.h"

namespace approxrt {
namespace {

// Weights and P of a strip are one symmetric matrix [C W; W^T P], of which the lower triangle is held: row kFirst + j
// has the strip's weights of input j in its first kTileN columns, then P's row up to the diagonal. Removing inputs is
// the Schur complement of their rows: it takes W_S (P_SS)^-1 P_S from W, P_,S (P_SS)^-1 P_S, from P, and of C's
// diagonal what each output pays. Those that go are brought to the end first, so that what is left stays in one piece
// and shrinks.
constexpr int64_t kFirst = kSchurPanel;
static_assert(kFirst >= kTileN, "a strip's weights fit before P");

int32_t step_size(const TileCurveArgs& a, int32_t left) {
    const int32_t count = a.at_once ? a.at_once : static_cast<int32_t>(a.share * left);
    return std::min(left, std::max(1, count));
}

class Strip {
  public:
    explicit Strip(const TileCurveArgs& args)
        : args_(args),
          columns_(static_cast<int32_t>(round_up(args.k, kTileK) / kTileK)),
          ld_(round_up(kFirst + columns_ * kTileK, kSchurPanel)),
          matrix_(sizeof(double) * ld_ * ld_),
          a_(matrix_.as<double>()),
          own_(columns_),
          place_(columns_),
          order_(columns_),
          goes_(columns_) {
        int64_t u = 0, most = 0;
        for (int32_t left = columns_, count; left; left -= count) {
            count = step_size(args, left);
            most = std::max<int64_t>(most, count * kTileK);
            u = std::max(u, schur_scratch_doubles(kFirst + (left - count) * kTileK, count * kTileK));
        }
        u_ = AlignedBuffer(sizeof(double) * u);
        factor_ = AlignedBuffer(sizeof(double) * most * most);
        copy_ = AlignedBuffer(sizeof(double) * most * most);
        // What the kernel overwrites without a meaning is read, too: it must be no denormal, which is slow.
        std::memset(a_, 0, matrix_.size());
    }

    void run(const KernelTable& kernels, int32_t strip) {
        load(strip);
        double* scores = args_.scores + static_cast<int64_t>(strip) * columns_;
        double highest = 0.0;
        for (int32_t left = columns_, count; left; left -= count) {
            count = step_size(args_, left);
            choose(left, count);
            bring_to_end(left, count);
            const double together = remove(kernels, left, count);
            double total = 0.0;
            for (int32_t i = left - count; i < left; ++i) total += own_[i];
            double most = highest;
            for (int32_t i = left - count; i < left; ++i) {
                const double share = total > 0.0 ? own_[i] / std::max(total, 1e-38) : 1.0 / count;
                const double cost = std::max(share * together, highest);
                scores[place_[i]] = cost;
                most = std::max(most, cost);
            }
            highest = most;
        }
    }

  private:
    double* row(int64_t tile) const { return a_ + (kFirst + tile * kTileK) * ld_; }
    static int64_t column(int64_t tile) { return kFirst + tile * kTileK; }

    void load(int32_t strip) {
        const int64_t first = static_cast<int64_t>(strip) * kTileN;
        const int64_t rows = std::min<int64_t>(kTileN, args_.n - first);
        for (int64_t r = 0; r < kTileN; ++r) row_weights_[r] = r < rows ? args_.row_weights[first + r] : 0.0;
        for (int64_t j = 0; j < columns_ * kTileK; ++j) {
            double* row = a_ + (kFirst + j) * ld_;
            for (int64_t r = 0; r < kTileN; ++r)
                row[r] = r < rows && j < args_.k ? args_.weight[(first + r) * args_.k + j] : 0.0;
            // Inputs past k are independent of all others, and their weights are zero.
            if (j < args_.k) {
                std::memcpy(row + kFirst, args_.inverse + j * args_.k, sizeof(double) * (j + 1));
            } else {
                std::fill_n(row + kFirst, j, 0.0);
                row[kFirst + j] = 1.0;
            }
        }
        for (int32_t i = 0; i < columns_; ++i) place_[i] = i;
    }

    // rho of a tile by itself: with P_SS = L D L^T and X = L^-1 W_S^T it is 1/2 sum_ir G_r X_ir^2 / D_i.
    double own_error(int32_t tile) const {
        double x[kTileK][kTileN], l[kTileK][kTileK], d[kTileK], rho = 0.0;
        for (int i = 0; i < kTileK; ++i) {
            const double* row = a_ + (column(tile) + i) * ld_;
            d[i] = row[column(tile) + i];
            for (int r = 0; r < kTileN; ++r) x[i][r] = row[r];
            for (int j = 0; j < i; ++j) {
                double entry = row[column(tile) + j];
                for (int t = 0; t < j; ++t) entry -= l[i][t] * d[t] * l[j][t];
                l[i][j] = entry / d[j];
                d[i] -= l[i][j] * entry;
                for (int r = 0; r < kTileN; ++r) x[i][r] -= l[i][j] * x[j][r];
            }
            d[i] = std::max(d[i], std::numeric_limits<double>::min());
            double energy = 0.0;
            for (int r = 0; r < kTileN; ++r) energy += row_weights_[r] * x[i][r] * x[i][r];
            rho += energy / d[i];
        }
        // Not a number is no order: it goes last.
        return rho < std::numeric_limits<double>::infinity() ? 0.5 * rho : std::numeric_limits<double>::max();
    }

    // goes_ <- the `count` of `left` tiles of the smallest own_; of equals those that came first in the linear.
    void choose(int32_t left, int32_t count) {
        for (int32_t i = 0; i < left; ++i) {
            own_[i] = own_error(i);
            order_[i] = i;
            goes_[i] = 0;
        }
        const auto before = [&](int32_t i, int32_t j) {
            return own_[i] != own_[j] ? own_[i] < own_[j] : place_[i] < place_[j];
        };
        if (count < left) std::nth_element(order_.begin(), order_.begin() + count, order_.begin() + left, before);
        for (int32_t i = 0; i < count; ++i) goes_[order_[i]] = 1;
    }

    void bring_to_end(int32_t left, int32_t count) {
        for (int32_t hole = 0, last = left - 1; hole < left - count; ++hole) {
            if (!goes_[hole]) continue;
            while (goes_[last]) --last;
            swap_tiles(hole, last, left);
            std::swap(own_[hole], own_[last]);
            std::swap(place_[hole], place_[last]);
            std::swap(goes_[hole], goes_[last]);
        }
    }

    // Rows and columns of tiles i < j, in the lower triangle of a symmetric matrix.
    void swap_tiles(int64_t i, int64_t j, int64_t left) {
        double *row_i = row(i), *row_j = row(j);
        const int64_t ci = column(i), cj = column(j);
        for (int64_t t = 0; t < kTileK; ++t) {
            double *of_i = row_i + t * ld_, *of_j = row_j + t * ld_;
            std::swap_ranges(of_i, of_i + ci, of_j);
            for (int64_t s = 0; s <= t; ++s) std::swap(of_i[ci + s], of_j[cj + s]);
            for (int64_t s = 0; s < t; ++s) std::swap(of_j[ci + s], row_j[s * ld_ + ci + t]);
        }
        for (int64_t l = ci + kTileK; l < cj; ++l)
            for (int64_t t = 0; t < kTileK; ++t) std::swap(a_[l * ld_ + ci + t], row_j[t * ld_ + l]);
        for (int64_t l = cj + kTileK; l < column(left); ++l)
            std::swap_ranges(a_ + l * ld_ + ci, a_ + l * ld_ + ci + kTileK, a_ + l * ld_ + cj);
    }

    // Removes the last `count` tiles; returns what they cost together.
    double remove(const KernelTable& kernels, int32_t left, int32_t count) {
        const int64_t n = column(left - count), m = static_cast<int64_t>(count) * kTileK;
        double* factor = factor_.as<double>();
        for (int64_t i = 0; i < m; ++i)
            for (int64_t j = 0; j <= i; ++j) factor[j * m + i] = factor[i * m + j] = a_[(n + i) * ld_ + n + j];
        upper_cholesky(factor, copy_.as<double>(), m);
        for (int64_t r = 0; r < kTileN; ++r) a_[r * ld_ + r] = 0.0;
        kernels.schur_complement({.a = a_,
                                  .ld = ld_,
                                  .n = static_cast<int32_t>(n),
                                  .m = static_cast<int32_t>(m),
                                  .factor = factor,
                                  .u = u_.as<double>()});
        double cost = 0.0;
        for (int64_t r = 0; r < kTileN; ++r) cost -= row_weights_[r] * a_[r * ld_ + r];
        return 0.5 * cost;
    }

    const TileCurveArgs& args_;
    const int32_t columns_;
    const int64_t ld_;
    AlignedBuffer matrix_, u_, factor_, copy_;
    double* const a_;
    double row_weights_[kTileN];
    // Of the tile at a position of the matrix: its rho, its column in the linear, and whether it goes in this step.
    std::vector<double> own_;
    std::vector<int32_t> place_, order_;
    std::vector<char> goes_;
};

// In place; false at a pivot that is not positive.
bool factorise(double* r, int64_t m) {
    for (int64_t i = 0; i < m; ++i) {
        double* row = r + i * m;
        if (!(row[i] > 0.0)) return false;
        const double inverse = 1.0 / std::sqrt(row[i]);
        for (int64_t j = i; j < m; ++j) row[j] *= inverse;
        for (int64_t t = i + 1; t < m; ++t) {
            double* other = r + t * m;
            const double factor = row[t];
            for (int64_t j = t; j < m; ++j) other[j] -= factor * row[j];
        }
    }
    return true;
}

}  // namespace

void upper_cholesky(double* square, double* copy, int64_t m) {
    std::memcpy(copy, square, sizeof(double) * m * m);
    double scale = 1e-30;
    for (int64_t i = 0; i < m; ++i) scale = std::max(scale, std::abs(square[i * m + i]));
    // With m times the largest entry on it the diagonal outweighs everything: only what is no number passes that.
    for (double extra = 1e-6; !factorise(square, m) && extra <= 10.0 * m; extra *= 10.0) {
        std::memcpy(square, copy, sizeof(double) * m * m);
        for (int64_t i = 0; i < m; ++i) square[i * m + i] += extra * scale;
    }
}

void tile_curve(const KernelTable& kernels, ThreadPool& pool, const TileCurveArgs& args) {
    const auto strips = static_cast<int32_t>(round_up(args.n, kTileN) / kTileN);
    std::vector<Strip> work;
    work.reserve(pool.threads());
    for (int i = 0; i < std::min(pool.threads(), strips); ++i) work.emplace_back(args);
    ThreadPool::Caller caller(pool);
    pool.run(strips, [&](int strip, int thread) { work[thread].run(kernels, strip); });
}

}  // namespace approxrt
