// Sign-matching attention of one head over a whole sequence, or over one with signs beside it (args.h has the
// definition): signs are packed, then count and select (common/sign_select_body.h), then attend
// (common/sign_rows_body.h).
#pragma once

#include "kernels/common/sign_rows_body.h"

namespace approxrt {
namespace {

inline void column_means(const float* x, const AttentionArgs& a, float* mean) {
    each_vec(a.head_dim, [&](int32_t c, int n) {
        const float* from = x + c / 16 * a.strip + c % 16;
        Vec even = zero(), uneven = zero();
        for (int32_t j = 0; j + 1 < a.n; j += 2) {
            even = add(even, load_n(from + j * a.ld, n));
            uneven = add(uneven, load_n(from + (j + 1) * a.ld, n));
        }
        if (a.n % 2) even = add(even, load_n(from + (a.n - 1) * a.ld, n));
        store_n(mean + c, mul(add(even, uneven), set1(1.0f / static_cast<float>(a.n))), n);
    });
}

// Signs of all keys as planes; `bytes` holds [d8 / 8][64].
inline void pack_signs(const AttentionArgs& a, int32_t d8, uint8_t* bytes, uint64_t* planes) {
    const int64_t words = sign_words(a.n);
    for (int64_t word = 0; word < words; ++word) {
        uint64_t* out = planes + word / kWordsABlock * kWordsABlock * d8 + word % kWordsABlock;
        const int64_t first = 64 * word;
        __builtin_memset(bytes, 0, 8 * round_up(d8, 16));
        for (int64_t j = first; j < first + 64 && j < a.n; ++j) {
            const float* key = a.k + j * a.ld;
            for (int32_t c = 0; c < a.head_dim; c += 16, key += a.strip) {
                uint8_t* to = bytes + c / 8 * 64 + (j - first);
                sign_bytes(key, a.head_dim - c < 16 ? a.head_dim - c : 16, to, to + 64);
            }
        }
        for (int32_t c = 0; c < d8; c += 8) spread_bytes(bytes + c / 8 * 64, out + c * kWordsABlock);
    }
}

inline void sign_attention(const SignAttentionArgs& s) {
    const AttentionArgs& a = s.a;
    Selection selection{a.n, a.head_dim, a.head_dim, s.keep, s.causal, false, s.window, s.always, s.planes, 0, 0, 0};
    selection.size();
    const int64_t words = selection.words;
    // Parts of the scratch memory, from the most aligned on.
    auto* planes = reinterpret_cast<uint64_t*>(a.scratch);
    uint64_t* sets = planes + sign_plane_words(a.n, a.head_dim);
    const int64_t d16 = round_up(a.head_dim, 16);
    const int64_t most = round_up(a.n, 16) + 32;
    auto* indices = reinterpret_cast<int32_t*>(sets + kTogether * 10 * words);
    auto* scores = reinterpret_cast<float*>(indices + kTogether * most);
    float* q = scores + kTogether * most;
    float *mean_key = q + kTogether * d16, *mean_value = mean_key + d16;
    auto* signs = reinterpret_cast<int32_t*>(mean_value + d16);
    auto* bytes = reinterpret_cast<uint8_t*>(signs + d16);
    if (!s.planes) {
        pack_signs(a, selection.d8, bytes, planes);
        selection.planes = planes;
    }
    if (s.rest) {
        column_means(a.k, a, mean_key);
        column_means(a.v, a, mean_value);
    }
    SignQuery b[kTogether];
    for (int r = 0; r < kTogether; ++r, sets += 10 * words)
        b[r] = {&selection,        sets,       sets + 8 * words, sets + 9 * words, signs, indices + r * most,
                scores + r * most, q + r * d16};
    const KeptRows<CacheF32, false> keys{a.k, a.ld, a.strip}, values{a.v, a.ld, a.strip};
    for (int32_t first = a.query_begin; first < a.query_end; first += kTogether) {
        const int rows = a.query_end - first < kTogether ? a.query_end - first : kTogether;
        bool select[kTogether] = {};
        Attending attending[kTogether];
        for (int r = 0; r < rows; ++r) {
            for (int32_t c = 0; c < a.head_dim; c += 16)
                __builtin_memcpy(b[r].q + c, a.q + (first + r) * a.ldq + c / 16 * a.q_strip,
                                 sizeof(float) * (a.head_dim - c < 16 ? a.head_dim - c : 16));
            const int32_t own = s.offset + first + r;
            select[r] = prepare(b[r], own, b[r].q);
            attending[r] = {a.out + (first + r) * a.ldo, s.causal ? own + 1 : a.n, s.rest ? mean_key : nullptr,
                            mean_value};
        }
        select_rows(b, select, rows);
        if (s.kept)
            for (int r = 0; r < rows; ++r)
                __builtin_memcpy(s.kept + (first + r) * words, b[r].kept, sizeof(uint64_t) * words);
        if (a.head_dim == 32)
            attend_kept<2>(b, attending, rows, keys, values, nullptr, nullptr, a.scale);
        else if (a.head_dim == 64)
            attend_kept<4>(b, attending, rows, keys, values, nullptr, nullptr, a.scale);
        else
            attend_kept<0>(b, attending, rows, keys, values, nullptr, nullptr, a.scale);
    }
}

}  // namespace
}  // namespace approxrt
