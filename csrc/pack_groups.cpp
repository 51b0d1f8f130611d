#include "pack_groups.h"

#include <cstring>

namespace approxrt {

GroupWeights::GroupWeights(int32_t bits, int32_t n, int32_t k, const float* bias) {
    const auto strips = static_cast<int32_t>(round_up(n, kTileN) / kTileN);
    packed_ = {.bits = bits,
               .n = n,
               .k = k,
               .strips = strips,
               .groups = static_cast<int32_t>(groups_of(k)),
               .blocks = nullptr,
               .bias = nullptr};
    blocks_ = AlignedBuffer::weights(packed_.block_bytes() * strips * packed_.groups);
    std::memset(blocks_.as<char>(), 0, blocks_.size());
    bias_ = padded_floats(bias, n, strips);
    packed_.blocks = blocks_.as<uint8_t>();
    packed_.bias = bias_.as<float>();
}

void GroupWeights::put_nibbles(const uint8_t* q4) {
    const int64_t row_bytes = (static_cast<int64_t>(packed_.k) + 1) / 2, groups = packed_.groups,
                  block_bytes = packed_.block_bytes();
    for (int32_t o = 0; o < packed_.n; ++o) {
        const uint8_t* row = q4 + o * row_bytes;
        uint8_t* block = blocks_.as<uint8_t>() + o / kTileN * groups * block_bytes;
        const int32_t lane = o % kTileN;
        for (int64_t g = 0; g < groups; ++g, block += block_bytes) {
            const int64_t left = row_bytes - g * (kGroupWeights / 2);
            uint8_t bytes[kGroupWeights / 2] = {};
            std::memcpy(bytes, row + g * (kGroupWeights / 2), left < kGroupWeights / 2 ? left : kGroupWeights / 2);
            // Inputs 8 c .. 8 c + 7 are four bytes of pairs; here the first four go with the last four.
            for (int c = 0; c < 4; ++c)
                for (int j = 0; j < kTileK; ++j) {
                    const int shift = j % 2 * 4;
                    const int first = bytes[4 * c + j / 2] >> shift & 15,
                              second = bytes[4 * c + 2 + j / 2] >> shift & 15;
                    block[c * 64 + lane * kTileK + j] = static_cast<uint8_t>(first | second << 4);
                }
        }
    }
}

void GroupWeights::put_halves(const uint16_t* values, int64_t at) {
    const int64_t groups = packed_.groups, block_bytes = packed_.block_bytes();
    for (int32_t o = 0; o < packed_.n; ++o) {
        uint8_t* block = blocks_.as<uint8_t>() + o / kTileN * groups * block_bytes + at + o % kTileN * 2;
        for (int64_t g = 0; g < groups; ++g) std::memcpy(block + g * block_bytes, values + o * groups + g, 2);
    }
}

GroupWeights GroupWeights::from_nibbles(int32_t n, int32_t k, const uint8_t* q4, const uint16_t* scale,
                                        const uint16_t* offset, const float* bias) {
    GroupWeights w(4, n, k, bias);
    w.put_nibbles(q4);
    w.put_halves(scale, 256);
    w.put_halves(offset, 288);
    return w;
}

GroupWeights GroupWeights::from_sixes(int32_t n, int32_t k, const uint8_t* q4, const uint8_t* q2, const uint16_t* scale,
                                      const float* bias) {
    GroupWeights w(6, n, k, bias);
    w.put_nibbles(q4);
    const int64_t row_bytes = (static_cast<int64_t>(k) + 3) / 4;
    for (int32_t o = 0; o < n; ++o) {
        uint8_t* strip = w.blocks_.as<uint8_t>() + o / kTileN * int64_t{w.packed_.groups} * kG6BlockBytes;
        // A byte of q2 is a tile's four inputs.
        for (int64_t tile = 0; tile < row_bytes; ++tile) {
            const int in_group = static_cast<int>(tile % kGroupTiles);
            uint8_t* high = strip + tile / kGroupTiles * kG6BlockBytes + 256 + in_group / 4 * 64 + o % kTileN * kTileK;
            const int byte = q2[o * row_bytes + tile];
            for (int j = 0; j < kTileK; ++j)
                high[j] = static_cast<uint8_t>(high[j] | (byte >> 2 * j & 3) << 2 * (in_group % 4));
        }
    }
    w.put_halves(scale, 384);
    return w;
}

GroupWeights GroupWeights::from_bytes(int32_t n, int32_t k, const int8_t* q, const uint16_t* scale, const float* bias) {
    GroupWeights w(8, n, k, bias);
    const int64_t groups = w.packed_.groups;
    for (int32_t o = 0; o < n; ++o) {
        const int8_t* row = q + static_cast<int64_t>(o) * k;
        uint8_t* block = w.blocks_.as<uint8_t>() + o / kTileN * groups * kG8BlockBytes;
        const int32_t lane = o % kTileN;
        for (int64_t g = 0; g < groups; ++g, block += kG8BlockBytes) {
            const int64_t begin = g * kGroupWeights, count = k - begin < kGroupWeights ? k - begin : kGroupWeights;
            for (int64_t i = 0; i < count; ++i)
                block[i / kTileK * 64 + lane * kTileK + i % kTileK] = static_cast<uint8_t>(row[begin + i] + 128);
        }
    }
    w.put_halves(scale, 512);
    return w;
}

}  // namespace approxrt
