#include "pack_groups.h"

#include <cstring>

namespace approxrt {

GroupWeights::GroupWeights(int32_t bits, int32_t n, int32_t k, const float* bias) {
    const auto strips = static_cast<int32_t>(round_up(n, kTileN) / kTileN);
    packed_ = {bits, n, k, strips, static_cast<int32_t>(groups_of(k)), nullptr, nullptr};
    blocks_ = AlignedBuffer::weights(packed_.block_bytes() * strips * packed_.groups);
    std::memset(blocks_.as<char>(), 0, blocks_.size());
    bias_ = AlignedBuffer(sizeof(float) * strips * kTileN);
    std::memset(bias_.as<char>(), 0, bias_.size());
    std::memcpy(bias_.as<float>(), bias, sizeof(float) * n);
    packed_.blocks = blocks_.as<uint8_t>();
    packed_.bias = bias_.as<float>();
}

GroupWeights GroupWeights::from_nibbles(int32_t n, int32_t k, const uint8_t* q4, const uint16_t* scale,
                                        const uint16_t* offset, const float* bias) {
    GroupWeights w(4, n, k, bias);
    const int64_t row_bytes = (static_cast<int64_t>(k) + 1) / 2, groups = w.packed_.groups;
    for (int32_t o = 0; o < n; ++o) {
        const uint8_t* row = q4 + o * row_bytes;
        uint8_t* block = w.blocks_.as<uint8_t>() + o / kTileN * groups * kG4BlockBytes;
        const int32_t lane = o % kTileN;
        for (int64_t g = 0; g < groups; ++g, block += kG4BlockBytes) {
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
            std::memcpy(block + 256 + 2 * lane, scale + o * groups + g, 2);
            std::memcpy(block + 288 + 2 * lane, offset + o * groups + g, 2);
        }
    }
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
            std::memcpy(block + 512 + 2 * lane, scale + o * groups + g, 2);
        }
    }
    return w;
}

}  // namespace approxrt
