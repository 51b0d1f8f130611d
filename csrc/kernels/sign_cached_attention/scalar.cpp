// Sign-matching attention over a cache: the definition (decoder_args.h).
#include <cstring>

#include "kernels/common/sign_scalar.h"

namespace approxrt {
namespace {

bool kept_bit(const uint64_t* words, int64_t j) { return words[j / 64] >> (j % 64) & 1; }

// The keys that a query at position n - 1 keeps, whose turned elements are `q`.
void select(const SignCachedAttentionArgs& s, const float* q, int64_t n, uint64_t* kept) {
    const int64_t d = s.sign.signs, d8 = round_up(d, 8);
    int64_t best[kSignBlock] = {};  // best[m]: how many keys of the rest match in m signs
    const auto always = [&](int64_t j) { return n <= s.keep || j == 0 || j >= n - s.window || j == n - 1; };
    const auto matches = [&](int64_t j) {
        int64_t m = 0;
        for (int64_t c = 0; c < d; ++c) {
            const uint64_t* word = s.sign.planes + (j / kSignBlock * d8 + c) * (kSignBlock / 64);
            m += std::signbit(q[c]) == kept_bit(word, j % kSignBlock);
        }
        return m;
    };
    for (int64_t j = 0; j < n; ++j)
        if (!always(j)) ++best[matches(j)];
    int64_t left = s.keep, threshold = d;
    for (; threshold >= 0 && best[threshold] <= left; --threshold) left -= best[threshold];
    for (int64_t j = n - 1; j >= 0; --j) {
        const int64_t m = always(j) ? d : matches(j);
        const bool take = always(j) || m > threshold || (m == threshold && left-- > 0);
        kept[j / 64] |= static_cast<uint64_t>(take) << (j % 64);
    }
}

}  // namespace

void sign_cached_attention_scalar(const SignCachedAttentionArgs& s) {
    const CachedAttentionArgs& a = s.a;
    const CacheHead& cache = a.cache;
    const int64_t d = cache.head_dim, d16 = round_up(d, 16), words = sign_words(a.position + a.tokens);
    auto* kept = reinterpret_cast<uint64_t*>(a.scratch);  // [words]
    float* p = a.scratch + 2 * words;                     // [keys]
    for (int32_t t = 0; t < a.tokens; ++t)
        for (int32_t h = 0; h < a.heads; ++h) {
            const float* q = a.q + t * a.ldq + h * d;
            float* out = a.out + t * a.ldo + h * d;
            const int64_t n = a.position + t + 1;
            float turned[kMostSignDim];
            if (s.sign.rotation) turn(s.sign, q, d, nullptr, turned);
            std::memset(kept, 0, sizeof(uint64_t) * words);
            select(s, s.sign.rotation ? turned : q, n, kept);
            if (s.kept) std::memcpy(s.kept + (t * a.heads + h) * words, kept, sizeof(uint64_t) * words);
            float highest = -INFINITY;
            int64_t rest = 0;
            for (int64_t j = 0; j < n; ++j) {
                if (!kept_bit(kept, j)) {
                    ++rest;
                    continue;
                }
                double score = 0.0;
                for (int64_t c = 0; c < d; ++c)
                    score += static_cast<double>(q[c]) * element(cache, cache.key_rows, cache.key_scales, j, c);
                p[j] = static_cast<float>(score) * a.scale;
                highest = p[j] > highest ? p[j] : highest;
            }
            const int64_t blocks = n / kSumBlock;
            const bool mean = s.sign.key_sums && rest;
            const double share = 1.0 / static_cast<double>(blocks * kSumBlock);
            float mean_score = 0.0f;
            if (mean) {
                double score = 0.0;
                for (int64_t c = 0; c < d; ++c) score += q[c] * share * s.sign.key_sums[blocks * d16 + c];
                mean_score = static_cast<float>(score * a.scale + std::log(static_cast<double>(rest)));
                highest = mean_score > highest ? mean_score : highest;
            }
            double sum = 0.0;
            for (int64_t j = 0; j < n; ++j)
                if (kept_bit(kept, j)) sum += p[j] = std::exp(p[j] - highest);
            const double weight = mean ? std::exp(mean_score - highest) : 0.0f;
            sum += weight;
            for (int64_t c = 0; c < d; ++c) {
                double total = mean ? weight * share * s.sign.value_sums[blocks * d16 + c] : 0.0;
                for (int64_t j = 0; j < n; ++j)
                    if (kept_bit(kept, j))
                        total += static_cast<double>(p[j]) * element(cache, cache.values, cache.value_scales, j, c);
                out[c] = static_cast<float>(total / sum);
            }
        }
}

}  // namespace approxrt
