// How a batch is divided among threads.
#pragma once

#include <cstdint>
#include <vector>

namespace approxrt {

// Sizes that decide how work is divided; they change times, never results. bench/bench_tuning.py compares values.
struct Tuning {
    // Tokens of a group that one thread takes through all layers: few enough that its hidden states stay near a core's
    // L2 (96 of MiniLM: 0.15 MB, and as much attended values), many enough that weights pass by seldom.
    int32_t group_tokens = 96;
    // Tokens that a thread alone takes through feed forward at a time: their widest activations should stay in L2.
    int32_t block_tokens = 48;
    // The same for threads of a team, which wait for each other after each step.
    int32_t team_block_tokens = 96;
    // A team with at most this many tokens splits linears by outputs (few_tokens.cpp).
    int32_t few_tokens = 16;
};

// Sequences begin .. end-1 of a batch, which go through the layers together.
struct Group {
    int32_t begin, end;
};

struct Plan {
    // True: every group is one thread's work from the embeddings to the end, and threads never wait for each other.
    // False: one group of all sequences, whose every layer all threads share.
    bool apart = false;
    std::vector<Group> groups;
    std::vector<int64_t> busy;  // tokens a thread, while planning
};

// Fills `plan` (its memory is reused). cu_seqlens as in Batch.
void make_plan(const int32_t* cu_seqlens, int32_t sequences, int threads, const Tuning& tuning, Plan& plan);

}  // namespace approxrt
