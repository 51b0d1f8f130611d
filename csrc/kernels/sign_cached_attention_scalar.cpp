// Sign-matching attention over a cache, and what lies beside one: the definition (decoder_args.h).
#include <cmath>
#include <cstring>

#include "../half.h"
#include "../sign_planes.h"
#include "../decoder_args.h"

namespace approxrt {
namespace {

// Element c of row j, of what is laid out as values are.
float element(const CacheHead& cache, const void* rows, const float* scales, int64_t j, int64_t c) {
    const int64_t at = (c / 16 * cache.capacity + j) * 16 + c % 16;
    switch (cache.kind) {
        case CacheKind::kF32:
            return static_cast<const float*>(rows)[at];
        case CacheKind::kF16:
            return float_from_half(static_cast<const uint16_t*>(rows)[at]);
        case CacheKind::kInt8:
            break;
    }
    return static_cast<float>(static_cast<const int8_t*>(rows)[at]) * scales[j];
}

void turn(const SignHead& sign, const float* x, int64_t d, const float* centre, float* y) {
    const int64_t ld = round_up(sign.signs, 16);
    for (int64_t o = 0; o < sign.signs; ++o) {
        y[o] = centre ? -centre[o] : 0.0f;
        for (int64_t c = 0; c < d; ++c) y[o] = std::fma(x[c], sign.rotation[c * ld + o], y[o]);
    }
}

void add_block(const CacheHead& cache, const void* rows, const float* scales, int64_t block, float* sums) {
    const int64_t d16 = round_up(cache.head_dim, 16);
    float* to = sums + (block + 1) * d16;
    for (int64_t c = 0; c < cache.head_dim; ++c) {
        to[c] = block ? to[c - d16] : 0.0f;
        for (int64_t j = block * kSumBlock; j < (block + 1) * kSumBlock; ++j)
            to[c] += element(cache, rows, scales, j, c);
    }
}

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

void sign_index_scalar(const SignIndexArgs& a) {
    const CacheHead& cache = a.cache;
    float key[kMostSignDim], turned[kMostSignDim];
    for (int64_t j = a.begin; j < a.end; ++j) {
        for (int64_t c = 0; c < cache.head_dim; ++c) key[c] = element(cache, cache.key_rows, cache.key_scales, j, c);
        if (a.sign.rotation) turn(a.sign, key, cache.head_dim, a.sign.centre, turned);
        write_signs(a.sign.rotation ? turned : key, a.sign.signs, j, a.sign.planes);
        if (!a.sign.key_sums || j % kSumBlock != kSumBlock - 1) continue;
        add_block(cache, cache.key_rows, cache.key_scales, j / kSumBlock, a.sign.key_sums);
        add_block(cache, cache.values, cache.value_scales, j / kSumBlock, a.sign.value_sums);
    }
}

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
