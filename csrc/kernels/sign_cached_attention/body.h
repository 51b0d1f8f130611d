// Sign-matching attention over a cache (decoder_args.h has the definition).
#pragma once

#include "kernels/common/sign_rows_body.h"
#include "kernels/common/sign_turn.h"

namespace approxrt {
namespace {

inline void mean_of(const float* sums, int64_t blocks, int32_t d, float* mean) {
    const Vec share = set1(1.0f / static_cast<float>(blocks * kSumBlock));
    const float* from = sums + blocks * round_up(d, 16);
    for (int32_t c = 0; c < d; c += Vec::kWidth) store(mean + c, mul(load(from + c), share));
}

template <class Element>
struct SignCached {
    static void run(const SignCachedAttentionArgs& s) {
        const CachedAttentionArgs& a = s.a;
        const CacheHead& cache = a.cache;
        const int32_t d = cache.head_dim;
        const int64_t n = static_cast<int64_t>(a.position) + a.tokens, d16 = round_up(d, 16);
        Selection selection{n, d, s.sign.signs, s.keep, true, true, s.window, nullptr, s.sign.planes, 0, 0, 0};
        selection.size();
        const int64_t words = selection.words, most = round_up(n, 16) + 32;
        auto* sets = reinterpret_cast<uint64_t*>(a.scratch);
        auto* indices = reinterpret_cast<int32_t*>(sets + kTogether * 10 * words);
        auto* scores = reinterpret_cast<float*>(indices + kTogether * most);
        float* q = scores + kTogether * most;
        float* turned = q + kTogether * 3 * d16;
        auto* signs = reinterpret_cast<int32_t*>(turned + round_up(kMostSignDim, 16));
        SignQuery b[kTogether];
        for (int r = 0; r < kTogether; ++r, sets += 10 * words)
            b[r] = {&selection,        sets,           sets + 8 * words, sets + 9 * words, signs, indices + r * most,
                    scores + r * most, q + r * 3 * d16};
        using Rows = KeptRows<Element, true>;
        using Type = typename Element::Type;
        const Rows keys{static_cast<const Type*>(cache.key_rows), 16, cache.capacity * 16};
        const Rows values{static_cast<const Type*>(cache.values), 16, cache.capacity * 16};
        const bool int8 = cache.kind == CacheKind::kInt8;
        const float *key_scales = int8 ? cache.key_scales : nullptr,
                    *value_scales = int8 ? cache.value_scales : nullptr;
        const int32_t queries = a.tokens * a.heads;
        for (int32_t first = 0; first < queries; first += kTogether) {
            const int rows = queries - first < kTogether ? queries - first : kTogether;
            bool select[kTogether] = {};
            Attending attending[kTogether];
            for (int r = 0; r < rows; ++r) {
                const int32_t t = (first + r) / a.heads, h = (first + r) % a.heads, own = a.position + t;
                float *mean_key = b[r].q + d16, *mean_value = mean_key + d16;
                for (int64_t c = d - d % 16; c < d16; ++c) b[r].q[c] = 0.0f;
                __builtin_memcpy(b[r].q, a.q + t * a.ldq + static_cast<int64_t>(h) * d, sizeof(float) * d);
                if (s.sign.rotation) turn(s.sign, b[r].q, d, nullptr, turned);
                select[r] = prepare(b[r], own, s.sign.rotation ? turned : b[r].q);
                attending[r] = {a.out + t * a.ldo + static_cast<int64_t>(h) * d, own + 1, nullptr, nullptr};
                if (!s.sign.key_sums) continue;
                // Queries of one token share its means.
                if (r > 0 && h > 0) {
                    attending[r].mean_key = attending[r - 1].mean_key;
                    attending[r].mean_value = attending[r - 1].mean_value;
                    continue;
                }
                mean_of(s.sign.key_sums, (own + 1) / kSumBlock, d, mean_key);
                mean_of(s.sign.value_sums, (own + 1) / kSumBlock, d, mean_value);
                attending[r].mean_key = mean_key;
                attending[r].mean_value = mean_value;
            }
            select_rows(b, select, rows);
            if (s.kept)
                for (int r = 0; r < rows; ++r)
                    __builtin_memcpy(s.kept + (first + r) * words, b[r].kept, sizeof(uint64_t) * words);
            if (d == 32)
                attend_kept<2>(b, attending, rows, keys, values, key_scales, value_scales, a.scale);
            else if (d == 64)
                attend_kept<4>(b, attending, rows, keys, values, key_scales, value_scales, a.scale);
            else
                attend_kept<0>(b, attending, rows, keys, values, key_scales, value_scales, a.scale);
        }
    }
};

inline void sign_cached_attention(const SignCachedAttentionArgs& s) { with_cache_kind<SignCached>(s.a.cache.kind, s); }

}  // namespace
}  // namespace approxrt
