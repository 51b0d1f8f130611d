// Who works on a group of sequences: one thread alone, or all threads of a pool together.
#pragma once

#include "thread_pool.h"

namespace approxrt {

class Team {
  public:
    explicit Team(ThreadPool& pool) : pool_(&pool) {}
    explicit Team(int thread) : thread_(thread) {}

    int size() const { return pool_ ? pool_->threads() : 1; }

    // body(task, thread) for tasks 0 .. tasks-1; returns when all are done.
    template <class Body>
    void run(int tasks, const Body& body) {
        if (pool_) return pool_->run(tasks, body);
        for (int task = 0; task < tasks; ++task) body(task, thread_);
    }

  private:
    ThreadPool* pool_ = nullptr;
    int thread_ = 0;
};

}  // namespace approxrt
