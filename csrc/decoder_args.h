// What the kernels of decoders are called with; the conventions are those of args.h.
#pragma once

#include "args.h"

namespace approxrt {

// y = x / sqrt(mean x^2 + eps) * gamma, a row at a time; y may be x.
struct RmsNormArgs {
    const float* x;
    int64_t ldx;
    int32_t rows;
    int32_t width;
    const float* gamma;
    float eps;
    float* y;
    int64_t ldy;
};

// Rotary positions in halves, in place: (a, b) <- (a cos - b sin, b cos + a sin) for the elements (i, i + head_dim / 2)
// of every head.
struct RopeArgs {
    float* x;  // [rows, heads * head_dim]
    int64_t ldx;
    int32_t rows, heads, head_dim;
    const float* cos;  // [rows, head_dim / 2]
    const float* sin;
};

// y = act(gate) * up; y may be either.
struct GatedArgs {
    const float* gate;
    int64_t ldg;
    const float* up;
    int64_t ldu;
    float* y;
    int64_t ldy;
    int32_t rows, width;
    Act act;
};

// y = x H a block of `size` columns, H the Hadamard matrix of Sylvester's construction over sqrt(size); y may be x. It
// spreads what is large in one element over its block. size: a power of 2, 16 to kLargestHadamard; width is a multiple.
struct HadamardArgs {
    const float* x;
    int64_t ldx;
    float* y;
    int64_t ldy;
    int32_t rows, width, size;
};
constexpr int kLargestHadamard = 128;  // eight registers of 16 floats

// -- the cache -----------------------------------------------------------------

// How keys and values are kept. kInt8: q = round(x * 127 / max|x|) with a scale a token and head.
enum class CacheKind : int32_t { kF32 = 0, kF16 = 1, kInt8 = 2 };
constexpr int64_t cache_element_size(CacheKind kind) {
    return kind == CacheKind::kF32 ? 4 : kind == CacheKind::kF16 ? 2 : 1;
}
constexpr int kCacheBlock = 16;  // keys side by side: a vector of scores

// One key-value head of one sequence, `capacity` tokens (a multiple of kCacheBlock):
//   keys    [capacity / 16][head_dim][16]             element c of token j at (j / 16 * head_dim + c) * 16 + j % 16
//   values  [head_dim / 16, rounded up][capacity][16] element c of token j at (c / 16 * capacity + j) * 16 + c % 16
// so that scores of 16 keys, and 16 elements of a sum of values, are vectors that lie in one piece.
struct CacheHead {
    CacheKind kind;
    int32_t head_dim;
    int64_t capacity;
    void* keys;
    void* values;
    float* key_scales;    // [capacity], kInt8 only
    float* value_scales;  // [capacity], kInt8 only
    void* key_rows;       // keys once more, laid as values are, for who reads single keys; or null
};
constexpr int64_t cache_key_elements(int64_t capacity, int64_t head_dim) { return capacity * head_dim; }
constexpr int64_t cache_value_elements(int64_t capacity, int64_t head_dim) {
    return capacity * round_up(head_dim, kCacheBlock);
}

// Rows of keys or of values (one of them null) into tokens position .. of a head.
struct CacheWriteArgs {
    const float* keys;
    const float* values;
    int64_t ld;
    int32_t rows;
    int32_t position;
    CacheHead to;
};

// Causal attention over a cache. Token t sees keys 0 .. position + t. The `heads` query heads of a token, which share
// the key-value head, follow one another: q[t * ldq + h * head_dim + c], and likewise out. A query's result does not
// depend on which others are computed with it.
struct CachedAttentionArgs {
    const float* q;
    int64_t ldq;
    int32_t tokens, heads;
    int32_t position;
    CacheHead cache;
    float scale;
    float* out;
    int64_t ldo;
    float* scratch;  // cached_attention_scratch_floats(position + tokens, head_dim), 64-byte aligned
};
constexpr int kCachedRows = 12;  // queries that a kernel may hold at a time
// Between two queries' scores: an odd number of cache lines, so that they do not share a few sets of L1.
constexpr int64_t cached_scores_ld(int64_t keys) { return round_up(keys, 2 * kCacheBlock) + kCacheBlock; }
constexpr int64_t cached_attention_scratch_floats(int64_t keys, int64_t head_dim) {
    return kCachedRows * (cached_scores_ld(keys) + round_up(head_dim, kCacheBlock));
}

// Sign-matching attention over a cache (args.h, SignAttentionArgs: causal, with keys 0 and those of the window always
// kept), for caches with key_rows. What lies beside a CacheHead for it:
//   planes      signs of R (k - m) for every key k, as SignAttentionArgs has them (`signs` in the place of head_dim);
//               matched with signs of R q. Products of queries with keys are what they are without m, and without R
//               where it is orthogonal, but signs around the mean, in a basis that is fitted to keys and queries or has
//               more elements than they have, say more about them. Without `rotation`: signs of k and q.
//   *_sums      of all keys and values before token 64 b, at row b. Queries that do not keep all keys see the rest as
//   so
//               many keys like the mean of those before the last whole block of 64 that the query sees, with the mean
//               value. Null: the rest has no part.
struct SignHead {
    int32_t signs;                 // of a key: head_dim, or rows of R
    uint64_t* planes;              // sign_plane_words(capacity, signs)
    float *key_sums, *value_sums;  // [capacity / 64 + 1][round_up(head_dim, 16)], or null
    const float* rotation;         // [head_dim][round_up(signs, 16)]: column o is row o of R; or null
    const float* centre;           // [round_up(signs, 16)]: R m; with a rotation only
};
constexpr int kSumBlock = 64;  // tokens between two rows of sums

// Brings what lies beside the cache up to date for tokens begin .. end - 1, which are in the cache, as those before
// are.
struct SignIndexArgs {
    CacheHead cache;
    SignHead sign;
    int32_t begin, end;
};

// As CachedAttentionArgs, each query to its kept keys alone: position + t + 1 keys, of which there are over kSumBlock.
struct SignCachedAttentionArgs {
    CachedAttentionArgs a;  // scratch: sign_cached_scratch_floats
    SignHead sign;
    int32_t keep, window;
    uint64_t* kept;  // null in production; else [tokens, heads, sign_words(position + tokens)] receives the kept keys
};
constexpr int64_t sign_cached_scratch_floats(int64_t keys, int64_t head_dim) {
    // For four queries at a time: counts and sets, indices and scores, the query and two means, its elements turned;
    // signs.
    return 2 * 4 * 10 * sign_words(keys) + 4 * 2 * (round_up(keys, 16) + 32) + 4 * 3 * round_up(head_dim, 16) +
           (4 + 1) * round_up(kMostSignDim, 16) + 64;
}

// -- products of a few tokens ---------------------------------------------------

constexpr int kGemvTokens = 8;  // that a gemv kernel holds at a time

// Tokens quantised as quantize_rows does it, each in one piece: a product of a few tokens reads every weight once and
// wants what it multiplies with in L1, which panels of 24 mostly empty tokens are not.
struct TokenRows {
    int8_t* q;      // [rows][ld], zeros behind k
    uint8_t* u;     // q + 128
    int32_t* sums;  // [rows][ld / 32]: of q over inputs 32 g .. 32 g + 31
    float* scales;  // [rows]
    int32_t rows, k;
    int64_t ld;  // token_row_bytes(k)
};
constexpr int64_t token_row_bytes(int64_t k) { return round_up(k, 64); }

struct QuantizeTokensArgs {
    const float* x;
    int64_t ldx;
    TokenRows to;
};

// As gemm_int8 with the same sums and the same epilogue, so that a token's result is that of gemm_int8. rows <=
// kGemvTokens; common.panels is not read.
struct GemvInt8Args {
    GemmInt8Args common;
    const TokenRows* x;
    int32_t panel_rows;  // mr of the layout that the weights' offsets were made for
};
struct GemvInt4Args {
    GemmInt4Args common;
    const TokenRows* x;
    int32_t panel_rows;
};

// -- a previewed head -------------------------------------------------------------

// Which logits come near enough to the largest to be computed exactly. One pass over logits[0 .. count - 1]:
//   *largest   the greatest of them, NaN apart; -infinity where there is none
//   ids        first + i of those that are at least `threshold`, ascending; *found of them; room for `count`
struct ShortlistArgs {
    const float* logits;
    int32_t count;
    float threshold;
    int32_t first;
    float* largest;
    int32_t* ids;
    int32_t* found;
};

// logits[ids[i]] of one token over a g8 embedding table that lies by rows, to the bit what gemm_groups makes of it
// (args.h): for a few words of many, which are read where they are.
struct WordLogitsArgs {
    const int8_t* q;        // [vocab, k]: signed, as artifacts store it
    const uint16_t* scale;  // float16 [vocab, ceil(k / 32)]
    int32_t k;
    const void* panel;  // the token, GroupPanels{1}
    float act_scale;
    const int32_t* ids;
    int32_t count;
    float* logits;
};

}  // namespace approxrt
