#include "pack.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace approxrt {
namespace {

constexpr int64_t kTileBytes = kTileN * kTileK;

int32_t strips_of(int32_t n) { return static_cast<int32_t>(round_up(n, kTileN) / kTileN); }

AlignedBuffer padded_floats(const float* values, int32_t n, int32_t strips) {
    AlignedBuffer buffer(sizeof(float) * strips * kTileN);
    std::memset(buffer.as<float>(), 0, buffer.size());
    std::memcpy(buffer.as<float>(), values, sizeof(float) * n);
    return buffer;
}

}  // namespace

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
    data_ = std::aligned_alloc(64, round_up(bytes ? static_cast<int64_t>(bytes) : 1, 64));
    if (!data_) throw std::bad_alloc();
}
AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
}
AlignedBuffer::~AlignedBuffer() { std::free(data_); }

Int8Weights::Int8Weights(int32_t n, int32_t k, int64_t tiles, bool sparse, const float* scale, const float* bias) {
    const int32_t strips = strips_of(n);
    indptr_ = AlignedBuffer(sizeof(int32_t) * (strips + 1));
    if (sparse) offsets_ = AlignedBuffer(sizeof(uint32_t) * tiles);
    tiles_ = AlignedBuffer(tiles * kTileBytes);
    scale_ = padded_floats(scale, n, strips);
    bias_ = padded_floats(bias, n, strips);
    correction_ = AlignedBuffer(sizeof(int32_t) * strips * kTileN);
    packed_ = {n,
               k,
               strips,
               indptr_.as<int32_t>(),
               sparse ? offsets_.as<uint32_t>() : nullptr,
               tiles_.as<int8_t>(),
               scale_.as<float>(),
               bias_.as<float>(),
               correction_.as<int32_t>()};
}

void Int8Weights::add_correction(const KernelTable& table) {
    auto* correction = correction_.as<int32_t>();
    std::memset(correction, 0, correction_.size());
    if (!table.layout.bias) return;
    int8_t order_output[kTileBytes];
    for (int i = 0; i < kTileBytes; ++i) order_output[i] = static_cast<int8_t>(table.tile_order[i] / kTileK);
    for (int32_t g = 0; g < packed_.strips; ++g)
        for (int32_t t = packed_.indptr[g]; t < packed_.indptr[g + 1]; ++t)
            for (int i = 0; i < kTileBytes; ++i)
                correction[g * kTileN + order_output[i]] += table.layout.bias * packed_.tiles[t * kTileBytes + i];
}

Int8Weights Int8Weights::from_dense(const KernelTable& table, int32_t n, int32_t k, const int8_t* q, const float* scale,
                                    const float* bias) {
    const int32_t groups = static_cast<int32_t>(round_up(k, kTileK) / kTileK), strips = strips_of(n);
    Int8Weights w(n, k, static_cast<int64_t>(groups) * strips, false, scale, bias);
    auto* indptr = w.indptr_.as<int32_t>();
    auto* tiles = w.tiles_.as<int8_t>();
    const bool aligned_k = k % kTileK == 0;
    for (int32_t g = 0; g <= strips; ++g) indptr[g] = g * groups;
    for (int32_t g = 0; g < strips; ++g) {
        const int rows = n - g * kTileN < kTileN ? n - g * kTileN : kTileN;
        for (int32_t c = 0; c < groups; ++c) {
            alignas(64) int8_t canonical[kTileBytes] = {};
            const int columns = aligned_k || c + 1 < groups ? kTileK : k - c * kTileK;
            for (int o = 0; o < rows; ++o)
                std::memcpy(canonical + o * kTileK, q + static_cast<int64_t>(g * kTileN + o) * k + c * kTileK, columns);
            int8_t* tile = tiles + (static_cast<int64_t>(g) * groups + c) * kTileBytes;
            for (int i = 0; i < kTileBytes; ++i) tile[i] = canonical[table.tile_order[i]];
        }
    }
    w.add_correction(table);
    return w;
}

Int8Weights Int8Weights::from_bsr(const KernelTable& table, int32_t n, int32_t k, const int32_t* indptr,
                                  const uint16_t* indices, const int8_t* tiles, const float* scale, const float* bias) {
    const int32_t strips = strips_of(n);
    const int64_t count = indptr[strips];
    Int8Weights w(n, k, count, true, scale, bias);
    std::memcpy(w.indptr_.as<int32_t>(), indptr, sizeof(int32_t) * (strips + 1));
    auto* offsets = w.offsets_.as<uint32_t>();
    auto* packed = w.tiles_.as<int8_t>();
    for (int64_t t = 0; t < count; ++t) {
        offsets[t] = static_cast<uint32_t>(indices[t] * table.layout.group_bytes());
        for (int i = 0; i < kTileBytes; ++i) packed[t * kTileBytes + i] = tiles[t * kTileBytes + table.tile_order[i]];
    }
    w.add_correction(table);
    return w;
}

size_t Int8Weights::bytes() const {
    return indptr_.size() + offsets_.size() + tiles_.size() + scale_.size() + bias_.size() + correction_.size();
}

F32Weights::F32Weights(int32_t n, int32_t k, const float* w, const float* bias) {
    const int32_t strips = strips_of(n);
    w_ = AlignedBuffer(sizeof(float) * strips * kTileN * static_cast<int64_t>(k));
    bias_ = padded_floats(bias, n, strips);
    auto* packed = w_.as<float>();
    for (int32_t g = 0; g < strips; ++g)
        for (int32_t c = 0; c < k; ++c)
            for (int o = 0; o < kTileN; ++o) {
                const int64_t output = static_cast<int64_t>(g) * kTileN + o;
                packed[(static_cast<int64_t>(g) * k + c) * kTileN + o] = output < n ? w[output * k + c] : 0.0f;
            }
    packed_ = {n, k, strips, packed, bias_.as<float>()};
}

size_t F32Weights::bytes() const { return w_.size() + bias_.size(); }

}  // namespace approxrt
