#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <map>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace approxrt {
namespace {

// How often a worker looks for the next region before it sleeps: 100 to 250 microseconds, as long as the CPU's pause
// lasts. Longer than what lies between two steps of a decoder (the logits are searched in Python), where a worker that
// slept would come late every time; far shorter than anything a person or a power meter would notice.
constexpr int kSpins = 5000;
// Before the end of a region is awaited by giving the core away, which somebody may need to reach it.
constexpr int kSpinsAtEnd = 2000;

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

struct Registry {
    std::mutex mutex;
    std::map<int, std::shared_ptr<ThreadPool>> pools;
};
// Never destroyed: a worker may outlive static destructors.
Registry& registry() {
    static Registry* r = new Registry;
    return *r;
}

void all_before_fork() {
    registry().mutex.lock();
    for (auto& entry : registry().pools) entry.second->finish_regions();
    for (auto& entry : registry().pools) entry.second->before_fork();
}
void all_after_fork_parent() {
    for (auto& entry : registry().pools) entry.second->after_fork_parent();
    for (auto& entry : registry().pools) entry.second->resume_regions();
    registry().mutex.unlock();
}
void all_after_fork_child() {
    for (auto& entry : registry().pools) entry.second->after_fork_child();
    registry().mutex.unlock();
}

}  // namespace

std::shared_ptr<ThreadPool> ThreadPool::get(int threads) {
    static const int registered = pthread_atfork(all_before_fork, all_after_fork_parent, all_after_fork_child);
    (void)registered;
    std::lock_guard<std::mutex> lock(registry().mutex);
    auto& pool = registry().pools[threads];
    if (!pool) pool = std::make_shared<ThreadPool>(threads);
    return pool;
}

ThreadPool::ThreadPool(int threads)
    : threads_(threads < 1 ? 1 : threads),
      callers_gate_(threads_ + 1),
      sleep_(std::make_unique<Sleep>()),
      workers_(std::make_unique<std::vector<std::thread>>()) {}

ThreadPool::~ThreadPool() {
    {
        std::lock_guard<std::mutex> lock(sleep_->mutex);
        stop_ = true;
    }
    sleep_->wake.notify_all();
    for (auto& thread : *workers_) thread.join();
}

void ThreadPool::start_workers() {
    workers_->reserve(threads_ - 1);
    for (int i = 1; i < threads_; ++i) workers_->emplace_back(&ThreadPool::worker, this, i);
}

// The order of stores and loads here is the protocol (all sequentially consistent):
//   caller:  fields; open = true; count++ ... tasks exhausted; open = false; wait for active == 0
//   worker:  active++; if open: work; active--
// A worker that saw `open` is seen in `active` before the caller returns; one that came too late sees
// `open == false` and touches nothing.
void ThreadPool::run_erased(int tasks, Function function, const void* context) {
    region_.enter();
    if (workers_->empty()) start_workers();
    tasks_ = tasks;
    function_ = function;
    context_ = context;
    next_task_ = 0;
    open_ = true;
    region_count_.fetch_add(1);
    if (sleepers_.load() > 0) {
        {
            std::lock_guard<std::mutex> sleep_lock(sleep_->mutex);
        }
        sleep_->wake.notify_all();
    }
    work(0);
    open_ = false;
    for (int spins = 0; active_.load() != 0; ++spins) {
        if (spins < kSpinsAtEnd)
            pause();
        else
            sched_yield();
    }
    region_.leave();
}

void ThreadPool::work(int thread) {
    for (int task; (task = next_task_.fetch_add(1)) < tasks_;) function_(context_, task, thread);
}

void ThreadPool::worker(int thread) {
    uint64_t seen = 0;
    for (;;) {
        for (int spins = 0; region_count_.load() == seen && spins < kSpins; ++spins) pause();
        if (region_count_.load() == seen) {
            std::unique_lock<std::mutex> lock(sleep_->mutex);
            sleepers_.fetch_add(1);
            sleep_->wake.wait(lock, [&] { return stop_.load() || region_count_.load() != seen; });
            sleepers_.fetch_sub(1);
        }
        if (stop_.load()) return;
        active_.fetch_add(1);
        if (open_.load()) {
            seen = region_count_.load();
            work(thread);
        } else {
            seen = region_count_.load();
        }
        active_.fetch_sub(1);
    }
}

void ThreadPool::finish_regions() { region_.enter(); }

void ThreadPool::resume_regions() { region_.leave(); }

void ThreadPool::before_fork() {
    region_.before_fork();
    callers_gate_.before_fork();
    sleep_->mutex.lock();
}

void ThreadPool::after_fork_parent() {
    sleep_->mutex.unlock();
    callers_gate_.after_fork_parent();
    region_.after_fork_parent();
}

void ThreadPool::after_fork_child() {
    // The child has none of the workers. Their handles and the state of the condition variable
    // belong to threads that do not exist here: leave both behind and begin anew.
    sleep_->mutex.unlock();
    (void)sleep_.release();
    (void)workers_.release();
    sleep_ = std::make_unique<Sleep>();
    workers_ = std::make_unique<std::vector<std::thread>>();
    open_ = false;
    active_ = 0;
    sleepers_ = 0;
    callers_ = 0;
    callers_gate_.after_fork_child();
    region_.after_fork_child();
}

}  // namespace approxrt
