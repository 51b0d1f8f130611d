// Fork/join over task indices.
//
// One pool serves all callers with the same thread count. A caller alone has all threads: it takes part in its own
// regions. As many callers as threads, or more, run their regions each on their own thread, a bounded number at a time:
// nobody waits at the end of a region, and threads are not multiplied. In between, regions run one at a time. Who waits
// is served in the order of coming. Workers spin briefly after a region (the next layer is microseconds
// away), then sleep; an idle pool uses no CPU. Workers start at the first region and again in a forked child; they end
// with the last one who holds the pool.
//
// Where the system gives no more threads (a limit of processes, no memory for stacks), regions run on those that there
// are, down to the caller alone: no work of a region is a certain thread's, so that answers are the same, only later.
// An error instead would come in the middle of somebody's call, long after the number was asked for, and again in each.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "fair_gate.h"

namespace approxrt {

class ThreadPool {
  public:
    // The process's pool with `threads` threads (the caller included), created where nobody holds one.
    static std::shared_ptr<ThreadPool> get(int threads);

    explicit ThreadPool(int threads);
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int threads() const { return threads_; }

    // Of those, how many the system refused when a region last asked for them.
    int missing() const { return missing_.load(std::memory_order_relaxed); }

    // Someone who is about to run several regions, such as a forward pass. Waits for its turn; with a single thread
    // everybody runs on their own, and nobody waits.
    class Caller {
      public:
        explicit Caller(ThreadPool& pool) : pool_(pool) {
            if (pool_.threads_ == 1) return;
            pool_.callers_gate_.enter();
            pool_.callers_.fetch_add(1);
        }
        ~Caller() {
            if (pool_.threads_ == 1) return;
            pool_.callers_.fetch_sub(1);
            pool_.callers_gate_.leave();
        }
        Caller(const Caller&) = delete;
        Caller& operator=(const Caller&) = delete;

      private:
        ThreadPool& pool_;
    };

    // Runs body(task, thread) for every task in [0, tasks); thread in [0, threads()). Tasks are handed
    // out in ascending order. `body` must not throw and must not call `run` on the same pool.
    template <class Body>
    void run(int tasks, const Body& body) {
        if (threads_ == 1 || tasks <= 1 || callers_.load() >= threads_) {
            for (int i = 0; i < tasks; ++i) body(i, 0);
            return;
        }
        run_erased(
            tasks,
            [](const void* context, int task, int thread) { (*static_cast<const Body*>(context))(task, thread); },
            &body);
    }

    // fork(), in this order, each for all pools before the next: then no region runs in the child's copy and no lock
    // is held by a thread that it does not have. resume_regions is for the parent.
    void finish_regions();
    void before_fork();
    void after_fork_parent();
    void after_fork_child();
    void resume_regions();

  private:
    using Function = void (*)(const void* context, int task, int thread);
    struct Sleep {
        std::mutex mutex;
        std::condition_variable wake;
    };

    void run_erased(int tasks, Function function, const void* context);
    void work(int thread);
    void worker(int thread);
    void start_workers();

    const int threads_;
    // One caller more than threads, so that a core has work while the next one wakes up: with 4 callers of 1 x 16
    // tokens on 2 cores 464 answers a second instead of 399, with 8 callers 453 instead of 432 (one run each).
    FairGate callers_gate_;
    FairGate region_{1};            // one region at a time
    std::unique_ptr<Sleep> sleep_;  // replaced in a forked child
    std::unique_ptr<std::vector<std::thread>> workers_;
    std::chrono::steady_clock::time_point next_start_;  // not before this, where some are missing
    std::atomic<int> missing_{0};

    std::atomic<int> callers_{0};    // that are through the gate
    std::atomic<bool> open_{false};  // a region accepts workers
    std::atomic<bool> stop_{false};
    std::atomic<uint64_t> region_count_{0};
    std::atomic<int> active_{0};  // workers that may touch the region's fields
    std::atomic<int> sleepers_{0};
    std::atomic<int> next_task_{0};
    int tasks_ = 0;
    Function function_ = nullptr;
    const void* context_ = nullptr;
};

}  // namespace approxrt
