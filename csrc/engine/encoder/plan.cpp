#include "plan.h"

#include <algorithm>

namespace approxrt {
namespace {

// Threads that share every layer wait for each other twice a layer; groups of unequal size wait once, at the end.
// Apart is taken when it keeps the threads busy at least this much of the time.
constexpr double kBusy = 0.85;

}  // namespace

void make_plan(const int32_t* cu_seqlens, int32_t sequences, int threads, const Tuning& tuning, Plan& plan) {
    const int64_t tokens = cu_seqlens[sequences];
    plan.groups.clear();
    plan.apart = threads == 1 || sequences >= threads;
    if (plan.apart) {
        const int64_t round = static_cast<int64_t>(threads) * tuning.group_tokens;
        const int64_t rounds = (tokens + round - 1) / round;
        const int64_t count = std::min<int64_t>(sequences, rounds * threads);
        // The k-th border is the sequence border nearest to k / count of all tokens.
        int32_t begin = 0;
        for (int64_t k = 1; k <= count && begin < sequences; ++k) {
            const int64_t target = tokens * k / count;
            int32_t end = begin + 1;
            while (end < sequences && cu_seqlens[end + 1] - target <= target - cu_seqlens[end]) ++end;
            if (k == count) end = sequences;
            plan.groups.push_back({begin, end});
            begin = end;
        }
        // Threads take groups in order as they become free: the time of the slowest against an even share.
        int64_t slowest = 0;
        std::vector<int64_t>& busy = plan.busy;
        busy.assign(threads, 0);
        for (const Group& group : plan.groups) {
            int64_t& least = *std::min_element(busy.begin(), busy.end());
            least += cu_seqlens[group.end] - cu_seqlens[group.begin];
            slowest = std::max(slowest, least);
        }
        plan.apart = threads == 1 || kBusy * static_cast<double>(slowest * threads) <= static_cast<double>(tokens);
    }
    if (!plan.apart) plan.groups.assign(1, {0, sequences});
}

}  // namespace approxrt
