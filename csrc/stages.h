// Many short parallel steps, one after the other, within a single region of a thread pool.
//
// A stage is divided into parts. Threads take parts as they come; a stage begins when all parts of the one before are
// done. A thread that is late finds its parts taken and goes through the stages until it meets the others, and one that
// never comes is not waited for: only parts that were begun are. A region each would cost some 3 microseconds a stage.
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
    explicit Stages(int parts) : parts_(parts) {}

    // What one thread goes through; every thread has its own, and they all come to the same stages in the same order.
    class Walk {
      public:
        explicit Walk(Stages& stages) : s_(stages) {}

        // body(part) for the parts that are left; returns when all parts of this stage are done.
        template <class Body>
        void stage(const Body& body) {
            const int64_t begin = end_;
            end_ += s_.parts_;
            for (int64_t ticket = s_.taken_.load(); ticket < end_;)
                if (s_.taken_.compare_exchange_weak(ticket, ticket + 1)) {
                    body(static_cast<int>(ticket - begin));
                    s_.done_.fetch_add(1);
                    ticket = s_.taken_.load();
                }
            for (int spins = 0; s_.done_.load() < end_; ++spins) relax(spins);
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
        int64_t end_ = 0;  // of this stage's tickets
    };

  private:
    const int parts_;
    std::atomic<int64_t> taken_{0}, done_{0};
};

}  // namespace approxrt
