// Memory that a thread will read soon, to be fetched while it waits for others.
#pragma once

#include <cstddef>
#include <cstdint>

namespace approxrt {

struct Span {
    const void* begin;
    size_t bytes;
};

class Ahead {
  public:
    // Behind what was added before. What no longer fits is left out.
    void add(Span span) {
        if (count_ == kSpans || left_ == 0 || span.bytes == 0) return;
        if (span.bytes > left_) span.bytes = left_;
        left_ -= span.bytes;
        spans_[count_++] = span;
    }
    // Asks for the next few cache lines to come to L2; false: there are none left. No more at a time than a core can
    // have under way, so that it does not last when the others are there.
    bool fetch() {
        for (int line = 0; line < kLines; ++line) {
            while (at_ < count_ && done_ >= spans_[at_].bytes) ++at_, done_ = 0;
            if (at_ == count_) return false;
            __builtin_prefetch(static_cast<const char*>(spans_[at_].begin) + done_, 0, 2);
            done_ += kLine;
        }
        return true;
    }

    // As many lines as may be under way beside work that does not wait for memory.
    void fetch_more() {
        for (int i = 0; i < 3 && fetch();) ++i;
    }
    void clear() {
        count_ = at_ = 0;
        done_ = 0;
        left_ = kMost;
    }

  private:
    static constexpr size_t kMost = 256 << 10;  // a part of L2, which holds what the thread works with as well
    static constexpr int kSpans = 16, kLines = 4;
    static constexpr size_t kLine = 64;

    Span spans_[kSpans];
    int count_ = 0, at_ = 0;
    size_t done_ = 0;  // of spans_[at_]
    size_t left_ = kMost;
};

}  // namespace approxrt
