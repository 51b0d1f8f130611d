// Where the time of forward passes goes, by operator. Off unless asked for: then two clock readings an
// operator and block of tokens (some 50 ns against tens of microseconds).
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>

namespace approxrt {

enum class Op : int32_t {
    kEmbedding,
    kNorm,      // layer norm, with the quantisation that is part of it
    kQuantize,  // of a linear's inputs, where no other step does it
    kQkv,
    kAttention,
    kOutput,
    kUp,  // with its activation
    kDown,
    kPooling,
    kHead,
    kCache,  // a decoder's rotary positions and writes to the cache
};
constexpr int kOps = 11;
constexpr const char* kOpNames[kOps] = {"embedding", "layer norm", "quantize",           "query, key, value",
                                        "attention", "output",     "ffn up, activation", "ffn down",
                                        "pooling",   "head",       "rope, cache"};

struct OpTime {
    int64_t calls = 0, ns = 0, macs = 0;

    void add(const OpTime& other) {
        calls += other.calls;
        ns += other.ns;
        macs += other.macs;
    }
};

using OpTimes = std::array<OpTime, kOps>;

inline int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

// Times its own life as `op` on one thread's account; does nothing without an account.
class Timed {
  public:
    Timed(OpTimes* account, Op op, int64_t macs = 0) : account_(account), op_(op), macs_(macs) {
        if (account_) begin_ = now_ns();
    }
    ~Timed() {
        if (account_) (*account_)[static_cast<int>(op_)].add({1, now_ns() - begin_, macs_});
    }
    Timed(const Timed&) = delete;
    Timed& operator=(const Timed&) = delete;

  private:
    OpTimes* account_;
    Op op_;
    int64_t macs_, begin_ = 0;
};

// The sum over threads and passes. `wall_ns` x threads less the operators' time is what threads waited.
struct Profile {
    OpTimes ops{};
    int64_t passes = 0, wall_ns = 0;
};

class ProfileSum {
  public:
    void add(const OpTimes& ops) {
        std::lock_guard<std::mutex> lock(mutex_);
        for (int i = 0; i < kOps; ++i) sum_.ops[i].add(ops[i]);
    }
    void add_pass(int64_t wall_ns) {
        std::lock_guard<std::mutex> lock(mutex_);
        ++sum_.passes;
        sum_.wall_ns += wall_ns;
    }
    // What was gathered since the last call.
    Profile take() {
        std::lock_guard<std::mutex> lock(mutex_);
        Profile taken = sum_;
        sum_ = {};
        return taken;
    }

  private:
    std::mutex mutex_;
    Profile sum_;
};

}  // namespace approxrt
