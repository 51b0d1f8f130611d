// The logits that come near to the largest, a vector at a time. Few are near: most vectors are a comparison and a
// branch that is not taken. A unit brings vec_*.h and reaches(Vec, Vec): a bit a lane where a >= b, none of NaN.
#pragma once

#include "decoder_args.h"

namespace approxrt {
namespace {

inline void shortlist_vectors(const ShortlistArgs& a) {
    constexpr int W = Vec::kWidth;
    const Vec threshold = set1(a.threshold), lowest = set1(-__builtin_inff());
    Vec largest = lowest;
    int32_t found = 0;
    for (int32_t i = 0; i < a.count; i += W) {
        const int32_t left = a.count - i;
        const Vec x = left >= W ? load(a.logits + i) : load_n(a.logits + i, left);
        uint32_t near = reaches(x, threshold);
        if (left < W) near &= (1u << left) - 1u;
        // The second operand where one is NaN.
        largest = max(left >= W ? x : keep_n(x, lowest, left), largest);
        for (; near; near &= near - 1) a.ids[found++] = a.first + i + __builtin_ctz(near);
    }
    *a.largest = reduce_max(largest);
    *a.found = found;
}

}  // namespace
}  // namespace approxrt
