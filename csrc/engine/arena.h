// Scratch memory of one forward pass at a time: grows to what the largest call needed, then is reused.
#pragma once

#include <vector>

#include "../pack.h"
#include "profile.h"

namespace approxrt {

// A buffer that only ever grows. `floats(n)` is valid until the next call with a larger n.
class Scratch {
  public:
    template <class T>
    T* get(size_t count) {
        if (count * sizeof(T) > buffer_.size()) {
            buffer_ = AlignedBuffer();  // free first: the old content is not needed
            buffer_ = AlignedBuffer(count * sizeof(T));
        }
        return buffer_.as<T>();
    }
    size_t bytes() const { return buffer_.size(); }

  private:
    AlignedBuffer buffer_;
};

// What one thread needs while it works on a block of tokens.
struct ThreadScratch {
    // int4_panels: where their layout is not that of int8 (weights.h).
    Scratch panels, int4_panels, scales, wide, narrow, attention;

    size_t bytes() const {
        return panels.bytes() + int4_panels.bytes() + scales.bytes() + wide.bytes() + narrow.bytes() +
               attention.bytes();
    }
};

// What one call needs. Calls that run at the same time have one each.
struct Context {
    Scratch x, qkv, attended, positions, tasks, first_x, first_q, pooled, dense;
    std::vector<ThreadScratch> threads;
    std::vector<OpTimes> ops;  // one a thread, while profiling

    size_t bytes() const {
        size_t sum = x.bytes() + qkv.bytes() + attended.bytes() + positions.bytes() + tasks.bytes() + first_x.bytes() +
                     first_q.bytes() + pooled.bytes() + dense.bytes();
        for (const ThreadScratch& t : threads) sum += t.bytes();
        return sum;
    }
};

}  // namespace approxrt
