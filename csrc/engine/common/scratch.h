// A buffer that only ever grows: what a forward pass works in, kept from call to call.
#pragma once

#include "pack.h"

namespace approxrt {

class Scratch {
  public:
    // Valid until the next call with a larger count; the content is lost when it grows.
    template <class T>
    T* get(size_t count) {
        if (count * sizeof(T) > buffer_.size()) {
            buffer_ = AlignedBuffer();  // free first: the old content is not needed
            buffer_ = AlignedBuffer(count * sizeof(T));
        }
        return buffer_.as<T>();
    }
    template <class T>
    const T* data() const {
        return buffer_.as<T>();
    }
    size_t bytes() const { return buffer_.size(); }

  private:
    AlignedBuffer buffer_;
};

}  // namespace approxrt
