// Sign-matching attention of one head over one sequence: the definition (args.h).
#include <cmath>

#include "args.h"

namespace approxrt {
namespace {

int64_t at(int64_t row, int32_t c, int64_t ld, int64_t strip) { return c / 16 * strip + row * ld + c % 16; }

bool bit(const uint64_t* words, int32_t j) { return words[j / 64] >> (j % 64) & 1; }

bool negative(const SignAttentionArgs& s, int32_t j, int32_t c) {
    const AttentionArgs& a = s.a;
    if (!s.planes) return std::signbit(a.k[at(j, c, a.ld, a.strip)]);
    return bit(s.planes + (j / kSignBlock * round_up(a.head_dim, 8) + c) * (kSignBlock / 64), j % kSignBlock);
}

}  // namespace

void sign_attention_scalar(const SignAttentionArgs& s) {
    const AttentionArgs& a = s.a;
    auto* kept = reinterpret_cast<int32_t*>(a.scratch);  // [n]
    int32_t* matches = kept + a.n;                       // [n]; -1: kept already
    auto* p = reinterpret_cast<float*>(matches + a.n);   // [n], of the kept keys
    float *mean_key = p + a.n, *mean_value = mean_key + a.head_dim;
    for (int32_t c = 0; c < a.head_dim && s.rest; ++c) {
        mean_key[c] = mean_value[c] = 0.0f;
        for (int32_t j = 0; j < a.n; ++j) {
            mean_key[c] += a.k[at(j, c, a.ld, a.strip)] / static_cast<float>(a.n);
            mean_value[c] += a.v[at(j, c, a.ld, a.strip)] / static_cast<float>(a.n);
        }
    }
    for (int32_t i = a.query_begin; i < a.query_end; ++i) {
        const int32_t own = s.offset + i, valid = s.causal ? own + 1 : a.n;
        int32_t best[kSignBlock] = {};  // best[m]: how many keys match in m signs
        for (int32_t j = 0; j < valid; ++j) {
            const bool always = j == own || (s.causal && j > own - s.window) || (s.always && bit(s.always, j));
            kept[j] = always || valid <= s.keep;
            matches[j] = 0;
            for (int32_t c = 0; c < a.head_dim; ++c)
                matches[j] += std::signbit(a.q[at(i, c, a.ldq, a.q_strip)]) == negative(s, j, c);
            if (!kept[j]) ++best[matches[j]];
        }
        int32_t left = s.keep, threshold = a.head_dim;
        for (; threshold >= 0 && best[threshold] <= left; --threshold) left -= best[threshold];
        for (int32_t step = 0; step < valid; ++step) {
            const int32_t j = s.causal ? valid - 1 - step : step;
            if (!kept[j]) kept[j] = matches[j] > threshold || (matches[j] == threshold && left-- > 0);
        }

        float max = -INFINITY, sum = 0.0f, rest = 0.0f;
        int32_t gone = 0;
        for (int32_t j = 0; j < valid; ++j) {
            if (!kept[j]) {
                ++gone;
                continue;
            }
            float score = 0.0f;
            for (int32_t c = 0; c < a.head_dim; ++c)
                score += a.q[at(i, c, a.ldq, a.q_strip)] * a.k[at(j, c, a.ld, a.strip)];
            p[j] = score;
            max = score > max ? score : max;
        }
        if (s.rest && gone) {
            float score = std::log(static_cast<float>(gone)) / a.scale;
            for (int32_t c = 0; c < a.head_dim; ++c) score += a.q[at(i, c, a.ldq, a.q_strip)] * mean_key[c];
            max = score > max ? score : max;
            sum = rest = std::exp(a.scale * (score - max));
        }
        for (int32_t j = 0; j < valid; ++j) sum += p[j] = kept[j] ? std::exp(a.scale * (p[j] - max)) : 0.0f;
        for (int32_t c = 0; c < a.head_dim; ++c) {
            float o = rest > 0.0f ? rest * mean_value[c] : 0.0f;
            for (int32_t j = 0; j < valid; ++j)
                if (kept[j]) o += p[j] * a.v[at(j, c, a.ld, a.strip)];
            a.out[i * a.ldo + c] = o / sum;
        }
        if (!s.kept) continue;
        uint64_t* words = s.kept + i * sign_words(a.n);
        for (int64_t w = 0; w < sign_words(a.n); ++w) words[w] = 0;
        for (int32_t j = 0; j < valid; ++j) words[j / 64] |= static_cast<uint64_t>(kept[j]) << (j % 64);
    }
}

}  // namespace approxrt
