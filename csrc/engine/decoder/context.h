// The memory of one step of a decoder, kept from call to call.
#pragma once

#include <vector>

#include "stages.h"
#include "engine/common/ahead.h"
#include "kv_cache.h"
#include "engine/common/profile.h"

namespace approxrt {

// New tokens of one sequence within a step.
struct SequenceRun {
    KvCache* cache;
    int32_t begin, count;  // of its tokens among the step's
};

// Rows quantised for gemv kernels, and for gemm kernels where there are no fast ones.
class FewRows {
  public:
    void reserve(const KernelTable& kernels, Forms forms, int32_t rows, int64_t k) {
        if (forms.groups) groups_.reserve(rows, rows, k);
        forms.groups = false;
        if (!forms.any()) return;
        if (!kernels.fast_gemv) return panels_.reserve(kernels, forms, rows, k);
        const int64_t ld = token_row_bytes(k);
        q_.get<int8_t>(rows * ld);
        u_.get<uint8_t>(rows * ld);
        sums_.get<int32_t>(rows * ld / kGroupWeights);
        scales_.get<float>(rows);
    }
    void fill(const KernelTable& kernels, Forms forms, const float* x, int64_t ldx, int32_t rows, int32_t k) {
        if (forms.groups) groups_.fill_one(kernels, x, ldx, rows, k);
        forms.groups = false;
        if (!forms.any()) return;
        if (!kernels.fast_gemv) return panels_.fill(kernels, forms, 0, x, ldx, rows, k);
        rows_ = {.q = q_.get<int8_t>(0),
                 .u = u_.get<uint8_t>(0),
                 .sums = sums_.get<int32_t>(0),
                 .scales = scales_.get<float>(0),
                 .rows = rows,
                 .k = k,
                 .ld = token_row_bytes(k)};
        kernels.quantize_tokens({.x = x, .ldx = ldx, .to = rows_});
    }
    const TokenRows& rows() const { return rows_; }
    const QuantizedRows& panels() const { return panels_; }
    const GroupRows& groups() const { return groups_; }
    size_t bytes() const {
        return q_.bytes() + u_.bytes() + sums_.bytes() + scales_.bytes() + panels_.bytes() + groups_.bytes();
    }

  private:
    Scratch q_, u_, sums_, scales_;
    TokenRows rows_{};
    QuantizedRows panels_;
    GroupRows groups_;
};

struct DecoderThread {
    QuantizedRows quantized;
    FewRows few;
    Scratch narrow;      // [rows, hidden]: normalised
    Scratch gate, wide;  // [rows, intermediate]
    Scratch keys, values;
    Scratch attention;
    GroupRows exact;  // tokens of a previewed head, a panel each

    size_t bytes() const {
        return quantized.bytes() + few.bytes() + narrow.bytes() + gate.bytes() + wide.bytes() + keys.bytes() +
               values.bytes() + attention.bytes() + exact.bytes();
    }
};

// Tokens begin .. of a run that one attention task takes.
struct Chunk {
    int32_t run, begin, count;
};

// A step of a few tokens between two meetings of the threads.
struct FewStage {
    enum class What {
        kEmbed,
        kQueryKeyValue,
        kAttend,
        kOutput,
        kUp,
        kDown,
        kHead,
        kProject,
        kPreview,
        kShortlist,
        kRefine,  // in the place of kHead where the head is previewed
    };
    What what;
    int32_t layer;
};

struct DecoderContext {
    explicit DecoderContext(int count) : threads(count) {}

    Scratch positions;  // [tokens] in the sequence
    Scratch rows;       // [tokens] of the position table
    Scratch cos, sin;   // [tokens, head_dim / 2]
    Scratch x;          // [tokens, hidden]
    Scratch query;      // [tokens, heads x head_dim]
    Scratch attended;   // the same
    Scratch shared;     // [tokens, intermediate] of a few tokens
    Scratch last;       // [rows, hidden]: what the head reads
    QuantizedRows last_quantized;
    // Of a previewed head.
    Scratch preview;  // [rows, the projection's outputs]
    QuantizedRows preview_quantized;
    Scratch shortlist;       // [rows or threads, vocab]: words whose logits are refined
    Scratch found, largest;  // [parts, kGemvTokens]: how many of them a part found; its largest logit
    std::vector<Chunk> chunks;
    std::vector<FewStage> few_stages;
    std::vector<Stages::Claim> claims;  // one a thread
    std::vector<DecoderThread> threads;
    std::vector<OpTimes> ops;  // one a thread, while profiling

    size_t bytes() const {
        size_t sum = positions.bytes() + rows.bytes() + cos.bytes() + sin.bytes() + x.bytes() + query.bytes() +
                     attended.bytes() + shared.bytes() + last.bytes() + last_quantized.bytes() + preview.bytes() +
                     preview_quantized.bytes() + shortlist.bytes() + found.bytes() + largest.bytes();
        for (const DecoderThread& t : threads) sum += t.bytes();
        return sum;
    }
};

}  // namespace approxrt
