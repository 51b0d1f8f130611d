// What passes of a model run in: memory that is kept from call to call, and their times.
#pragma once

#include <array>
#include <atomic>
#include <memory>

#include "thread_pool.h"
#include "profile.h"

namespace approxrt {

// Contexts are made for a number of threads, and have `bytes()` and the account `ops` of each thread's times.
template <class Context>
class Passes {
  public:
    explicit Passes(std::shared_ptr<ThreadPool> pool) : pool_(std::move(pool)) {}
    ~Passes() {
        for (auto& slot : idle_) delete slot.load();
    }
    Passes(const Passes&) = delete;
    Passes& operator=(const Passes&) = delete;

    ThreadPool& pool() const { return *pool_; }

    // body(context) as a caller of the pool, with a context that nobody else has meanwhile.
    template <class Body>
    void run(const Body& body) {
        const ThreadPool::Caller turn(*pool_);
        struct Lease {
            Passes& passes;
            Context* context;
            ~Lease() { passes.release(context); }
        } lease{*this, acquire()};
        Context& context = *lease.context;
        const bool profiling = profiling_.load(std::memory_order_relaxed);
        context.ops.assign(profiling ? pool_->threads() : 0, {});
        const int64_t begin = profiling ? now_ns() : 0;
        body(context);
        if (!profiling) return;
        for (const OpTimes& ops : context.ops) profile_.add(ops);
        profile_.add_pass(now_ns() - begin);
    }

    // Passes that begin while this is on are timed by operator; `take_profile` returns their sum and clears it.
    void set_profiling(bool on) { profiling_ = on; }
    Profile take_profile() { return profile_.take(); }

    // Bytes of idle contexts.
    size_t bytes() {
        size_t sum = 0;
        for (auto& slot : idle_) {
            // Taken out while it is read, so that no call resizes it meanwhile.
            if (Context* context = slot.exchange(nullptr)) {
                sum += context->bytes();
                release(context);
            }
        }
        return sum;
    }

  private:
    Context* acquire() {
        for (auto& slot : idle_)
            if (Context* context = slot.exchange(nullptr)) return context;
        return new Context(pool_->threads());
    }
    void release(Context* context) {
        for (auto& slot : idle_) {
            Context* empty = nullptr;
            if (slot.compare_exchange_strong(empty, context)) return;
        }
        delete context;
    }

    const std::shared_ptr<ThreadPool> pool_;
    std::atomic<bool> profiling_{false};
    ProfileSum profile_;
    // Idle contexts. A lock-free set: a fork in the middle of a call leaves the child a usable one.
    std::array<std::atomic<Context*>, 32> idle_{};
};

}  // namespace approxrt
