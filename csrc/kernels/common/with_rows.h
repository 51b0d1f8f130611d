// From a run-time number of rows to a register block of exactly that many.
#pragma once

namespace approxrt {
namespace {

// Calls body<rows>() for the run-time number of rows 1..MR.
template <int MR, template <int> class Body, class Args>
inline void with_rows(int rows, const Args& args) {
    if (rows == MR) {
        Body<MR>::run(args);
    } else if constexpr (MR > 1) {
        with_rows<MR - 1, Body>(rows, args);
    }
}

}  // namespace
}  // namespace approxrt
