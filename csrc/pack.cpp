#include "pack.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

namespace approxrt {
namespace {

constexpr int64_t kTileBytes = kTileN * kTileK;
constexpr size_t kHugePage = 2 << 20, kChunk = 16 << 20;

int32_t strips_of(int32_t n) { return static_cast<int32_t>(round_up(n, kTileN) / kTileN); }

// Re-lays canonical tiles for a kernel: at full speed in the two orders that kernels use, in any other by bytes.
class TileOrder {
  public:
    explicit TileOrder(const uint8_t* order) : order_(order) {
        for (int i = 0; i < kTileBytes; ++i) {
            const int half = i / (kTileBytes / 2), at = i % (kTileBytes / 2);
            canonical_ = canonical_ && order[i] == i;
            pairs_ = pairs_ && order[i] == at / 2 * kTileK + half * 2 + at % 2;
        }
    }
    void apply(const int8_t* canonical, int8_t* out) const {
        if (canonical_) {
            std::memcpy(out, canonical, kTileBytes);
        } else if (pairs_) {
            // First the pairs of inputs 0 and 1 of all outputs, then those of inputs 2 and 3.
            uint16_t from[kTileBytes / 2], to[kTileBytes / 2];
            std::memcpy(from, canonical, kTileBytes);
            for (int o = 0; o < kTileN; ++o) {
                to[o] = from[2 * o];
                to[kTileN + o] = from[2 * o + 1];
            }
            std::memcpy(out, to, kTileBytes);
        } else {
            for (int i = 0; i < kTileBytes; ++i) out[i] = canonical[order_[i]];
        }
    }

  private:
    const uint8_t* order_;
    bool canonical_ = true, pairs_ = true;
};

// sums[o] += the weights of output o in a canonical tile.
void add_sums(const int8_t* canonical, int32_t* sums) {
    for (int o = 0; o < kTileN; ++o)
        for (int i = 0; i < kTileK; ++i) sums[o] += canonical[o * kTileK + i];
}

// Kernels that take unsigned activations (x + bias) subtract bias times the sum of an output's kept weights.
void scale_sums(int32_t bias, int32_t* sums) {
    for (int o = 0; o < kTileN; ++o) sums[o] *= bias;
}

}  // namespace

AlignedBuffer::AlignedBuffer(size_t bytes) : size_(bytes) {
    data_ = std::aligned_alloc(64, round_up(bytes ? static_cast<int64_t>(bytes) : 1, 64));
    if (!data_) throw std::bad_alloc();
}
// Several buffers of weights; freed with the last of them.
struct AlignedBuffer::Chunk {
    explicit Chunk(size_t bytes) : size(bytes), data(std::aligned_alloc(kHugePage, bytes)) {
        if (!data) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        madvise(data, bytes, MADV_HUGEPAGE);  // advice: it may be refused
#endif
    }
    ~Chunk() { std::free(data); }
    Chunk(const Chunk&) = delete;
    Chunk& operator=(const Chunk&) = delete;

    const size_t size;
    void* const data;
    size_t used = 0;
};

AlignedBuffer AlignedBuffer::weights(size_t bytes) {
    // Where this thread's next buffers go; its buffers keep it alive. No lock: a fork may come at any time.
    static thread_local std::weak_ptr<Chunk> open;
    const auto needed = static_cast<size_t>(round_up(bytes ? static_cast<int64_t>(bytes) : 1, 64));
    std::shared_ptr<Chunk> chunk = open.lock();
    if (!chunk || chunk->size - chunk->used < needed) {
        chunk = std::make_shared<Chunk>(round_up(std::max(needed, kChunk), kHugePage));
        open = chunk;
    }
    AlignedBuffer buffer;
    buffer.data_ = static_cast<char*>(chunk->data) + chunk->used;
    buffer.size_ = bytes;
    chunk->used += needed;
    buffer.chunk_ = std::move(chunk);
    return buffer;
}

AlignedBuffer::AlignedBuffer(AlignedBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      chunk_(std::move(other.chunk_)) {}
AlignedBuffer& AlignedBuffer::operator=(AlignedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(chunk_, other.chunk_);
    return *this;
}
AlignedBuffer::~AlignedBuffer() {
    if (!chunk_) std::free(data_);
}

AlignedBuffer padded_floats(const float* values, int32_t n, int32_t strips) {
    AlignedBuffer buffer(sizeof(float) * strips * kTileN);
    std::memset(buffer.as<float>(), 0, buffer.size());
    std::memcpy(buffer.as<float>(), values, sizeof(float) * n);
    return buffer;
}

Int8Weights::Int8Weights(int32_t n, int32_t k, int64_t tiles, bool sparse, const float* scale, const float* bias) {
    const int32_t strips = strips_of(n);
    indptr_ = AlignedBuffer(sizeof(int32_t) * (strips + 1));
    if (sparse) offsets_ = AlignedBuffer(sizeof(uint32_t) * tiles);
    // AMX loads sixteen tiles at a time, the last time fewer than that and what lies behind them.
    tiles_ = AlignedBuffer::weights((tiles + 15) * kTileBytes);
    scale_ = padded_floats(scale, n, strips);
    bias_ = padded_floats(bias, n, strips);
    correction_ = AlignedBuffer(sizeof(int32_t) * strips * kTileN);
    std::memset(correction_.as<int32_t>(), 0, correction_.size());
    packed_ = {.n = n,
               .k = k,
               .strips = strips,
               .indptr = indptr_.as<int32_t>(),
               .offsets = sparse ? offsets_.as<uint32_t>() : nullptr,
               .tiles = tiles_.as<int8_t>(),
               .scale = scale_.as<float>(),
               .bias = bias_.as<float>(),
               .correction = correction_.as<int32_t>(),
               .token_lanes = false};
}

Int8Weights Int8Weights::from_dense(const KernelTable& table, int32_t n, int32_t k, const int8_t* q, const float* scale,
                                    const float* bias) {
    const int32_t groups = static_cast<int32_t>(round_up(k, kTileK) / kTileK), strips = strips_of(n);
    Int8Weights w(n, k, static_cast<int64_t>(groups) * strips, false, scale, bias);
    auto* indptr = w.indptr_.as<int32_t>();
    auto* packed = w.tiles_.as<int8_t>();
    const TileOrder order(table.tile_order);
    const int32_t whole = k / kTileK;
    for (int32_t g = 0; g <= strips; ++g) indptr[g] = g * groups;
    for (int32_t g = 0; g < strips; ++g) {
        const int rows = n - g * kTileN < kTileN ? n - g * kTileN : kTileN;
        int32_t* sums = w.correction_.as<int32_t>() + g * kTileN;
        for (int32_t c = 0; c < groups; ++c, packed += kTileBytes) {
            alignas(64) int8_t canonical[kTileBytes] = {};
            const int8_t* from = q + static_cast<int64_t>(g) * kTileN * k + c * kTileK;
            if (c < whole && rows == kTileN) {
                // The common case apart: copies of a constant size are moves of a register.
                for (int o = 0; o < kTileN; ++o) std::memcpy(canonical + o * kTileK, from + int64_t{o} * k, kTileK);
            } else {
                const int columns = c < whole ? kTileK : k - c * kTileK;
                for (int o = 0; o < rows; ++o) std::memcpy(canonical + o * kTileK, from + int64_t{o} * k, columns);
            }
            order.apply(canonical, packed);
            if (table.layout.bias) add_sums(canonical, sums);
        }
        scale_sums(table.layout.bias, sums);
    }
    return w;
}

Int8Weights Int8Weights::from_bsr(const KernelTable& table, int32_t n, int32_t k, const int32_t* indptr,
                                  const uint16_t* indices, const int8_t* tiles, const float* scale, const float* bias) {
    const int32_t strips = strips_of(n);
    Int8Weights w(n, k, indptr[strips], true, scale, bias);
    w.set_token_lanes(table.token_lanes);
    std::memcpy(w.indptr_.as<int32_t>(), indptr, sizeof(int32_t) * (strips + 1));
    auto* offsets = w.offsets_.as<uint32_t>();
    auto* packed = w.tiles_.as<int8_t>();
    const TileOrder order(table.tile_order);
    const int64_t group_bytes = table.layout.group_bytes();
    for (int32_t g = 0; g < strips; ++g) {
        int32_t* sums = w.correction_.as<int32_t>() + g * kTileN;
        for (int64_t t = indptr[g]; t < indptr[g + 1]; ++t) {
            offsets[t] = static_cast<uint32_t>(indices[t] * group_bytes);
            order.apply(tiles + t * kTileBytes, packed + t * kTileBytes);
            if (table.layout.bias) add_sums(tiles + t * kTileBytes, sums);
        }
        scale_sums(table.layout.bias, sums);
    }
    return w;
}

size_t Int8Weights::bytes() const {
    return indptr_.size() + offsets_.size() + tiles_.size() + scale_.size() + bias_.size() + correction_.size();
}

F32Weights::F32Weights(int32_t n, int32_t k, const float* w, const float* bias) {
    const int32_t strips = strips_of(n);
    w_ = AlignedBuffer::weights(sizeof(float) * strips * kTileN * static_cast<int64_t>(k));
    bias_ = padded_floats(bias, n, strips);
    auto* packed = w_.as<float>();
    for (int32_t g = 0; g < strips; ++g) {
        const int rows = n - g * kTileN < kTileN ? n - g * kTileN : kTileN;
        const float* from = w + static_cast<int64_t>(g) * kTileN * k;
        float* to = packed + static_cast<int64_t>(g) * kTileN * k;
        if (rows == kTileN) {
            for (int32_t c = 0; c < k; ++c, to += kTileN)
                for (int o = 0; o < kTileN; ++o) to[o] = from[int64_t{o} * k + c];
        } else {
            for (int32_t c = 0; c < k; ++c, to += kTileN)
                for (int o = 0; o < kTileN; ++o) to[o] = o < rows ? from[int64_t{o} * k + c] : 0.0f;
        }
    }
    packed_ = {.n = n, .k = k, .strips = strips, .w = packed, .bias = bias_.as<float>()};
}

size_t F32Weights::bytes() const { return w_.size() + bias_.size(); }

}  // namespace approxrt
