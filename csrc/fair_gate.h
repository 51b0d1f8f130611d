// Lets at most `capacity` holders in at a time, strictly in the order in which they came.
//
// std::mutex makes no such promise: one that is unlocked and locked again at once by a caller in a loop can keep
// others waiting for as long as the loop runs.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>

namespace approxrt {

class FairGate {
  public:
    explicit FairGate(int capacity) : capacity_(capacity), state_(std::make_unique<State>()) {}

    void enter() {
        State& s = *state_;
        std::unique_lock<std::mutex> lock(s.mutex);
        if (s.inside < capacity_) {
            ++s.inside;
            return;
        }
        Waiter self;
        s.waiting.push_back(&self);
        self.wake.wait(lock, [&] { return self.admitted; });
    }
    void leave() {
        State& s = *state_;
        std::lock_guard<std::mutex> lock(s.mutex);
        if (s.waiting.empty()) {
            --s.inside;
            return;
        }
        // The place goes to the first in line. Woken under the lock: after it, the waiter may be gone.
        Waiter& first = *s.waiting.front();
        s.waiting.pop_front();
        first.admitted = true;
        first.wake.notify_one();
    }

    // Around a fork. In the child nobody is inside or waiting; the old state belongs to threads that are not there,
    // so it is left behind.
    void before_fork() { state_->mutex.lock(); }
    void after_fork_parent() { state_->mutex.unlock(); }
    void after_fork_child() {
        (void)state_.release();
        state_ = std::make_unique<State>();
    }

  private:
    struct Waiter {
        std::condition_variable wake;
        bool admitted = false;
    };
    struct State {
        std::mutex mutex;
        int inside = 0;
        std::deque<Waiter*> waiting;  // empty unless inside == capacity
    };
    const int capacity_;
    std::unique_ptr<State> state_;
};

}  // namespace approxrt
