// Canonical weights -> a kernel family's layout. The one packer: engine, tests and benchmarks use it.
#pragma once

#include <cstdint>
#include <memory>

#include "dispatch.h"

namespace approxrt {

// 64-byte aligned memory that frees itself.
class AlignedBuffer {
  public:
    AlignedBuffer() = default;
    explicit AlignedBuffer(size_t bytes);
    // For packed weights: side by side in memory that the system is asked to map in huge pages, since every pass walks
    // through all of it, and with pages of 4 KB a translation would be missing every 64 cache lines.
    static AlignedBuffer weights(size_t bytes);
    AlignedBuffer(AlignedBuffer&& other) noexcept;
    AlignedBuffer& operator=(AlignedBuffer&& other) noexcept;
    ~AlignedBuffer();

    template <class T>
    T* as() const {
        return static_cast<T*>(data_);
    }
    size_t size() const { return size_; }

  private:
    struct Chunk;

    void* data_ = nullptr;
    size_t size_ = 0;
    std::shared_ptr<Chunk> chunk_;  // owns the memory of weights
};

// Values of n outputs in whole strips, zeros behind them.
AlignedBuffer padded_floats(const float* values, int32_t n, int32_t strips);

// int8 weights in the layout of `table`, owned.
class Int8Weights {
  public:
    // q [n, k] row-major, scale [n], bias [n].
    static Int8Weights from_dense(const KernelTable& table, int32_t n, int32_t k, const int8_t* q, const float* scale,
                                  const float* bias);
    // tiles [indptr[strips]][16][4], indices (groups of 4 inputs), CSR over strips of 16 outputs.
    // Preconditions (the reader has checked them): indptr ascends from 0, indices < ceil(k / 4).
    static Int8Weights from_bsr(const KernelTable& table, int32_t n, int32_t k, const int32_t* indptr,
                                const uint16_t* indices, const int8_t* tiles, const float* scale, const float* bias);
    const PackedInt8& packed() const { return packed_; }
    // For tests: the table says what suits the CPU.
    void set_token_lanes(bool on) { packed_.token_lanes = on; }
    size_t bytes() const;

  private:
    Int8Weights(int32_t n, int32_t k, int64_t tiles, bool sparse, const float* scale, const float* bias);

    PackedInt8 packed_{};
    AlignedBuffer indptr_, offsets_, tiles_, scale_, bias_, correction_;
};

// f32 weights as [strips][k][16], owned.
class F32Weights {
  public:
    F32Weights() = default;  // none
    // w [n, k] row-major, bias [n].
    F32Weights(int32_t n, int32_t k, const float* w, const float* bias);
    const PackedF32& packed() const { return packed_; }
    size_t bytes() const;

  private:
    PackedF32 packed_{};
    AlignedBuffer w_, bias_;
};

}  // namespace approxrt
