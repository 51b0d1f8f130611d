// Many short parallel steps, one after the other, within a single region of a thread pool.
//
// A stage is divided into parts. Every thread has a part that it takes first, always the same one, so that what it
// fetches for its next part while it waits is in its own caches; then it takes what nobody has begun. A stage begins
// when all parts of the one before are done. A thread that is late finds its part taken and goes through the stages
// until it meets the others, and one that never comes is not waited for: only parts that were begun are. A region each
// would cost some 3 microseconds a stage.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace approxrt {

class Stages {
  public:
    // The last stage in which a part was begun; a cache line of its own.
    struct alignas(64) Claim {
        std::atomic<int64_t> stage{0};
    };
    // claims [parts] are the caller's memory.
    Stages(int parts, Claim* claims) : parts_(parts), claims_(claims) {
        for (int i = 0; i < parts; ++i) claims_[i].stage.store(0, std::memory_order_relaxed);
    }

    // What one thread goes through; every thread has its own, and they all come to the same stages in the same order.
    class Walk {
      public:
        Walk(Stages& stages, int first) : s_(stages), first_(first % stages.parts_) {}

        // body(part) for the parts that are left; returns when all parts of this stage are done. Until then idle() is
        // called, again and again: a short piece of work that nobody waits for; false when there is none left.
        template <class Body, class Idle>
        void stage(const Body& body, const Idle& idle) {
            const int64_t stage = ++stage_, end = stage * s_.parts_;
            for (int i = 0, part = first_; i < s_.parts_; ++i, part = part + 1 < s_.parts_ ? part + 1 : 0) {
                std::atomic<int64_t>& claim = s_.claims_[part].stage;
                int64_t before = stage - 1;
                if (claim.load() != before || !claim.compare_exchange_strong(before, stage)) continue;
                body(part);
                s_.done_.fetch_add(1);
            }
            bool busy = true;
            for (int spins = 0; s_.done_.load() < end;) {
                busy = busy && idle();
                if (!busy) relax(spins++);
            }
        }

      private:
        static void relax(int spins) {
            // About 50 microseconds; then somebody else may have the core of a part that is not running.
            if (spins > 2000) {
                sched_yield();
                return;
            }
#if defined(__x86_64__)
            _mm_pause();
#endif
        }

        Stages& s_;
        const int first_;
        int64_t stage_ = 0;
    };

  private:
    const int parts_;
    Claim* const claims_;
    alignas(64) std::atomic<int64_t> done_{0};
};

}  // namespace approxrt
