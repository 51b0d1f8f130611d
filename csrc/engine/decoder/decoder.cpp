#include "decoder.h"

#include <stdexcept>
#include <string>

#include "pass.h"

namespace approxrt {

Decoder::Decoder(DecoderModel model, const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, int32_t block_tokens)
    : model_(std::move(model)), kernels_(kernels), pool_(std::move(pool)), block_tokens_(block_tokens) {
    model_.each_linear([&](const Linear& w) { forms_.add({&w}); });
}

Decoder::~Decoder() {
    for (auto& slot : idle_) delete slot.load();
}

DecoderContext* Decoder::acquire() const {
    for (auto& slot : idle_)
        if (DecoderContext* context = slot.exchange(nullptr)) return context;
    auto context = std::make_unique<DecoderContext>();
    context->threads.resize(pool_->threads());
    return context.release();
}

void Decoder::release(DecoderContext* context) const {
    for (auto& slot : idle_) {
        DecoderContext* empty = nullptr;
        if (slot.compare_exchange_strong(empty, context)) return;
    }
    delete context;
}

void Decoder::check(const Step& step) const {
    const auto fail = [](const std::string& message) { throw std::invalid_argument(message); };
    if (step.count < 1) fail("the step has no sequences: give at least one");
    for (int32_t i = 0; i < step.count; ++i) {
        const SequenceRun& run = step.runs[i];
        if (run.count < 1) fail("sequence " + std::to_string(i) + " has no new tokens: give at least one");
        if (run.cache->length() + run.count > run.cache->capacity())
            fail("sequence " + std::to_string(i) + " has " + std::to_string(run.cache->length()) + " tokens and " +
                 std::to_string(run.count) + " new ones; its cache has room for " +
                 std::to_string(run.cache->capacity()));
    }
    for (int32_t t = 0; t < step.tokens; ++t)
        if (step.ids[t] < 0 || step.ids[t] >= model_.vocab)
            fail("token id " + std::to_string(step.ids[t]) + " is outside the vocabulary (0 to " +
                 std::to_string(model_.vocab - 1) + ")");
}

void Decoder::run(const Step& step) const {
    const ThreadPool::Caller turn(*pool_);
    struct Lease {
        const Decoder& decoder;
        DecoderContext* context;
        ~Lease() { decoder.release(context); }
    } lease{*this, acquire()};
    DecoderContext& context = *lease.context;
    const bool profiling = profiling_.load(std::memory_order_relaxed);
    context.ops.assign(profiling ? context.threads.size() : 0, {});
    const int64_t begin = profiling ? now_ns() : 0;
    DecoderPass(model_, kernels_, forms_, *pool_, block_tokens_, step, context).run();
    for (int32_t i = 0; i < step.count; ++i) step.runs[i].cache->advance(step.runs[i].count);
    if (!profiling) return;
    for (const OpTimes& ops : context.ops) profile_.add(ops);
    profile_.add_pass(now_ns() - begin);
}

size_t Decoder::weight_bytes() const {
    size_t sum = 0;
    model_.each_linear([&](const Linear& w) { sum += w.bytes(); });
    return sum;
}

size_t Decoder::scratch_bytes() const {
    size_t sum = 0;
    for (auto& slot : idle_)
        if (DecoderContext* context = slot.exchange(nullptr)) {
            sum += context->bytes();
            release(context);
        }
    return sum;
}

}  // namespace approxrt
