// Weights with float16 scales a group -> the layout of gemm_groups, which is one for all levels.
#pragma once

#include <cstdint>

#include "pack.h"

namespace approxrt {

// Of either format (args.h), owned. Scales and offsets are float16 bits [n, ceil(k / 32)].
class GroupWeights {
  public:
    // q4 [n, ceil(k / 2)]: q in 0 .. 15, the even input in the low nibble.
    static GroupWeights from_nibbles(int32_t n, int32_t k, const uint8_t* q4, const uint16_t* scale,
                                     const uint16_t* offset, const float* bias);
    // q4 as above and q2 [n, ceil(k / 4)]: the low and the two high bits of q in 0 .. 63, the first of four inputs in
    // the low bits of a byte of q2.
    static GroupWeights from_sixes(int32_t n, int32_t k, const uint8_t* q4, const uint8_t* q2, const uint16_t* scale,
                                   const float* bias);
    // q [n, k].
    static GroupWeights from_bytes(int32_t n, int32_t k, const int8_t* q, const uint16_t* scale, const float* bias);

    const PackedGroups& packed() const { return packed_; }
    size_t bytes() const { return blocks_.size() + bias_.size(); }

    static int64_t groups_of(int64_t k) { return round_up(k, kGroupWeights) / kGroupWeights; }

  private:
    // The nibbles of every block, and float16 parts behind `at`.
    void put_nibbles(const uint8_t* q4);
    void put_halves(const uint16_t* values, int64_t at);
    GroupWeights(int32_t bits, int32_t n, int32_t k, const float* bias);

    PackedGroups packed_{};
    AlignedBuffer blocks_, bias_;
};

}  // namespace approxrt
