#include "decoder.h"

#include <stdexcept>
#include <string>

#include "pass.h"

namespace approxrt {

Decoder::Decoder(DecoderModel model, const KernelTable& kernels, std::shared_ptr<ThreadPool> pool, int32_t block_tokens)
    : model_(std::move(model)),
      kernels_(kernels),
      block_tokens_(block_tokens),
      forms_(forms_of(model_)),
      passes_(std::move(pool)) {}

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
        if (step.ids[t] < 0 || step.ids[t] >= model_.vocab())
            fail("token id " + std::to_string(step.ids[t]) + " is outside the vocabulary (0 to " +
                 std::to_string(model_.vocab() - 1) + ")");
}

void Decoder::run(const Step& step) const {
    passes_.run([&](DecoderContext& context) {
        DecoderPass(model_, kernels_, forms_, passes_.pool(), block_tokens_, step, context).run();
        for (int32_t i = 0; i < step.count; ++i) step.runs[i].cache->advance(step.runs[i].count);
    });
}

}  // namespace approxrt
