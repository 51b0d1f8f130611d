// Work divided evenly.
#pragma once

#include <cstdint>

namespace approxrt {

// Part `part` of `parts` of 0 .. count-1.
struct Part {
    int32_t begin, end;
    Part(int32_t count, int part, int parts)
        : begin(static_cast<int32_t>(static_cast<int64_t>(count) * part / parts)),
          end(static_cast<int32_t>(static_cast<int64_t>(count) * (part + 1) / parts)) {}
};

}  // namespace approxrt
