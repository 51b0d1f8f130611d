#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <exception>
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
// How long a pool goes on with fewer threads than it asked for before it asks again, which costs some microseconds.
constexpr std::chrono::seconds kStartAgain{1};
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
    std::map<int, std::weak_ptr<ThreadPool>> pools;
    std::vector<std::shared_ptr<ThreadPool>> forking;  // those of `pools`, from before a fork until after it
};
// Never destroyed: a worker may outlive static destructors.
Registry& registry() {
    static Registry* r = new Registry;
    return *r;
}

void all_before_fork() {
    Registry& r = registry();
    r.mutex.lock();
    for (auto& entry : r.pools)
        if (auto pool = entry.second.lock()) r.forking.push_back(std::move(pool));
    for (auto& pool : r.forking) pool->finish_regions();
    for (auto& pool : r.forking) pool->before_fork();
}
// Pools may end here, where the model that held them went meanwhile: without the lock.
void all_after_fork_parent() {
    for (auto& pool : registry().forking) pool->after_fork_parent();
    for (auto& pool : registry().forking) pool->resume_regions();
    const auto pools = std::move(registry().forking);
    registry().mutex.unlock();
}
void all_after_fork_child() {
    for (auto& pool : registry().forking) pool->after_fork_child();
    const auto pools = std::move(registry().forking);
    registry().mutex.unlock();
}

}  // namespace

std::shared_ptr<ThreadPool> ThreadPool::get(int threads) {
    static const int registered = pthread_atfork(all_before_fork, all_after_fork_parent, all_after_fork_child);
    (void)registered;
    std::lock_guard<std::mutex> lock(registry().mutex);
    auto& held = registry().pools[threads];
    auto pool = held.lock();
    if (!pool) held = pool = std::make_shared<ThreadPool>(threads);
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
    const auto wanted = static_cast<size_t>(threads_ - 1);
    if (missing_ && std::chrono::steady_clock::now() < next_start_) return;
    try {
        workers_->reserve(wanted);
        while (workers_->size() < wanted)
            workers_->emplace_back(&ThreadPool::worker, this, static_cast<int>(workers_->size()) + 1);
    } catch (const std::exception&) {  // std::system_error, or std::bad_alloc; what was started stays
        next_start_ = std::chrono::steady_clock::now() + kStartAgain;
    }
    missing_ = static_cast<int>(wanted - workers_->size());
}

// The order of stores and loads here is the protocol (all sequentially consistent):
//   caller:  fields; open = true; count++ ... tasks exhausted; open = false; wait for active == 0
//   worker:  active++; if open: work; active--
// A worker that saw `open` is seen in `active` before the caller returns; one that came too late sees
// `open == false` and touches nothing.
void ThreadPool::run_erased(int tasks, Function function, const void* context) {
    region_.enter();
    if (static_cast<int>(workers_->size()) < threads_ - 1) start_workers();
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
    missing_ = 0;
    open_ = false;
    active_ = 0;
    sleepers_ = 0;
    callers_ = 0;
    callers_gate_.after_fork_child();
    region_.after_fork_child();
}

}  // namespace approxrt
