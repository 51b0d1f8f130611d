// Signs of keys kept beside a cache (args.h has the layout): one bit a plane for each new key. Each unit has its own
// copy, made for its own instruction set.
#pragma once

#include <cstring>

#include "args.h"

namespace approxrt {
namespace {

// Writes the signs of the `head_dim` elements of key `j` among those of the others.
inline void write_signs(const float* key, int32_t head_dim, int64_t j, uint64_t* planes) {
    uint64_t* word = planes + j / kSignBlock * (kSignBlock / 64) * round_up(head_dim, 8) + j % kSignBlock / 64;
    const uint64_t mask = 1ull << (j % 64);
    for (int32_t c = 0; c < head_dim; ++c, word += kSignBlock / 64) {
        uint32_t bits;
        std::memcpy(&bits, key + c, sizeof(bits));
        *word = (*word & ~mask) | (bits >> 31 ? mask : 0);
    }
    for (int32_t c = head_dim; c < round_up(head_dim, 8); ++c, word += kSignBlock / 64) *word &= ~mask;
}

}  // namespace
}  // namespace approxrt
