// How a batch is divided among threads.
#pragma once

#include <cstdint>
#include <vector>

namespace approxrt {

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
void make_plan(const int32_t* cu_seqlens, int32_t sequences, int threads, Plan& plan);

}  // namespace approxrt
