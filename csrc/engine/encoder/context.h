// The memory of one forward pass at a time: grows to what the largest call needed, then is reused. Calls that run at
// the same time have one each.
#pragma once

#include <vector>

#include "plan.h"
#include "engine/common/profile.h"
#include "engine/common/weights.h"

namespace approxrt {

// What one thread (or one of the parts that a step is split into) needs while it works.
struct ThreadScratch {
    QuantizedRows quantized, first_quantized;  // rows of a linear's input
    Scratch wide;                              // [rows, intermediate]
    Scratch narrow;                            // [rows, hidden]
    Scratch heads;                             // query, key and value of some heads
    Scratch attention;
    Scratch always;    // bits over keys that sign matching keeps
    Scratch x, first;  // hidden states that the part keeps for itself (few_tokens.cpp)

    size_t bytes() const {
        return quantized.bytes() + first_quantized.bytes() + wide.bytes() + narrow.bytes() + heads.bytes() +
               attention.bytes() + always.bytes() + x.bytes() + first.bytes();
    }
};

// What a group of sequences needs while its layers run.
struct GroupScratch {
    Scratch x;         // [tokens, hidden]: hidden states
    Scratch first;     // [sequences, hidden]: those of first tokens, once the others are not needed any more
    Scratch attended;  // [tokens, heads x head_dim]
    Scratch shared;    // [tokens, hidden + intermediate]: what parts hand to each other (few_tokens.cpp)
    QuantizedRows quantized, first_quantized;  // of x, for the next query, key and value

    size_t bytes() const {
        return x.bytes() + first.bytes() + attended.bytes() + shared.bytes() + quantized.bytes() +
               first_quantized.bytes();
    }
};

struct Context {
    explicit Context(int count) : groups(count), threads(count) {}

    Plan plan;
    Scratch positions;                   // [tokens]: of each token in its sequence
    Scratch pooled;                      // [sequences, hidden], or [tokens, hidden]: what the head reads
    std::vector<GroupScratch> groups;    // one a thread
    std::vector<ThreadScratch> threads;  // one a thread
    std::vector<OpTimes> ops;            // one a thread, while profiling

    size_t bytes() const {
        size_t sum = positions.bytes() + pooled.bytes();
        for (const GroupScratch& g : groups) sum += g.bytes();
        for (const ThreadScratch& t : threads) sum += t.bytes();
        return sum;
    }
};

}  // namespace approxrt
