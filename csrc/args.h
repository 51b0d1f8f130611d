// What kernels are called with. Plain data: no ownership, no STL, so that units compiled for an
// instruction set share no inline code with the rest.
//
// Conventions. Rows are tokens. Strides (`ld*`) count elements, not bytes. Linears work on strips of
// kTileN outputs: a buffer that a linear writes or reads as a residual has ld >= round_up(n, kTileN),
// and the kernel writes whole strips (the surplus columns receive the padding's result: bias 0,
// weight 0). Pointers to packed weights are 64-byte aligned; activations need natural alignment only.
#pragma once

#include <cstddef>
#include <cstdint>

namespace approxrt {

constexpr int kTileN = 16;  // outputs of a tile: one zmm of int32 accumulators, two ymm
constexpr int kTileK = 4;   // inputs of a tile: what one vpdpbusd lane sums

constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

enum class Act : int32_t { kIdentity = 0, kGelu = 1, kGeluTanh = 2, kRelu = 3, kTanh = 4, kSilu = 5 };

constexpr int kBlockK = 64;  // inputs of a block that AMX multiplies with: sixteen tiles

// How a GEMM kernel wants quantised activations: panels of `mr` tokens, k-major in groups of
// kTileK inputs, so that a broadcast of one token's group is base + constant:
//   panel[(k / 4) * mr * 4 + token * 4 + k % 4], elements of `element_size` bytes;
// or, `in_blocks`, k-major in blocks of kBlockK inputs, each of which is a tile register of AMX:
//   panel[(k / 64) * mr * 64 + token * 64 + k % 64], zeros behind the last group.
// Stored is u = q + bias, q = round(x * 127 / max|x|) in [-127, 127].
struct PanelLayout {
    int32_t mr;
    int32_t element_size;
    int32_t bias;
    bool in_blocks;

    // Of a group of inputs; in blocks, of one that has been taken out of them.
    constexpr size_t group_bytes() const { return static_cast<size_t>(mr) * kTileK * element_size; }
    constexpr size_t panel_bytes(int64_t k) const {
        return round_up(k, in_blocks ? kBlockK : kTileK) / kTileK * group_bytes();
    }
    constexpr size_t bytes(int64_t rows, int64_t k) const { return round_up(rows, mr) / mr * panel_bytes(k); }
    // Of an element within its panel.
    constexpr size_t offset(int64_t token, int64_t input) const {
        const int64_t width = in_blocks ? kBlockK : kTileK;
        return ((input / width * mr + token) * width + input % width) * element_size;
    }
    constexpr bool operator==(const PanelLayout& o) const {
        return mr == o.mr && element_size == o.element_size && bias == o.bias && in_blocks == o.in_blocks;
    }
    constexpr bool operator!=(const PanelLayout& o) const { return !(*this == o); }
};
// Those there are: the unsigned operand of vpdpbusd and vpmaddubsw, the signed one of vpmaddwd, and that of tdpbusd.
constexpr PanelLayout byte_panels(int32_t mr) { return {mr, 1, 128, false}; }
constexpr PanelLayout word_panels(int32_t mr) { return {mr, 2, 0, false}; }
constexpr PanelLayout byte_blocks(int32_t mr) { return {mr, 1, 128, true}; }

// panels, scales <- x.  s_t = max|x_t| / 127; a row whose maximum is below kQuantizeFloor becomes
// exact zeros with s_t = 0; a row with a NaN has s_t = NaN, integers that mean nothing, and so NaN for all its
// outputs. Rows beyond `rows` in the last panel are filled with q = 0.
struct QuantizeRowsArgs {
    const float* x;  // [rows, k]
    int64_t ldx;
    int32_t rows;
    int32_t k;
    void* panels;   // layout of the GEMM kernel that will read them
    float* scales;  // [rows]
};
constexpr float kQuantizeFloor = 1e-30f;

// int8 weights re-laid for one kernel. Strip g owns tiles indptr[g] .. indptr[g+1]-1 of 64
// bytes. `offsets[t]` is the byte offset of tile t's activation group within a panel; null when the
// linear is dense (tile t of a strip is group t).
struct PackedInt8 {
    int32_t n, k, strips;
    const int32_t* indptr;      // [strips + 1]
    const uint32_t* offsets;    // [tiles] or null
    const int8_t* tiles;        // [tiles * 64], order of the 64 bytes as the panels' layout asks (KernelTable)
    const float* scale;         // [strips * 16], 0 in the padding
    const float* bias;          // [strips * 16], 0 in the padding
    const int32_t* correction;  // [strips * 16]: layout.bias * sum of the output's kept weights
    bool token_lanes;           // a sparse matrix whose level has both: sums with tokens, not outputs, in lanes
};

// y[t, o] = act(s_t * s_o * (sum_k u[t, k] q[o, k] - correction[o]) + b[o]) (+ residual[t, o]).
struct GemmInt8Args {
    const void* panels;
    const float* act_scales;  // [rows]
    int32_t rows;
    const PackedInt8* w;
    int32_t strip_begin, strip_end;
    float* y;  // column 0 of strip_begin: strip g of token t goes to y + (g - strip_begin) * y_strip + t * ldy
    int64_t ldy, y_strip;
    const float* residual;  // null: none; column 0 of strip_begin; rows in one piece; added after the activation
    int64_t ldr;
    Act act;
    int32_t* accumulators;  // null in production; else [rows, strips * 16] receives the corrected int32 sums
};

constexpr int kGroupTiles = 8;      // consecutive tiles of a strip (32 inputs an output) that share int4 group scales
constexpr int kInt4TileBytes = 32;  // a tile of nibbles
constexpr int kMaxGroupScale = 18;  // 18 * 7 = 126: a group scale times a nibble's value is an int8
constexpr int kGroupWeights = kGroupTiles * kTileK;  // of one output that share a group scale

// int4 weights with two levels of scales: W[o, i] = scale[o] * m[o, group] * q4[o, i], q4 in [-7, 7], m in
// 1 .. kMaxGroupScale. m * q4 is an int8, and a linear's sums are those of the int8 linear with these weights.
// Byte i of a tile holds q4 + 8 of canonical byte i (outputs 0..7) in its low nibble and of 32 + i (outputs
// 8..15) in its high one, on every level: both halves of a register come by masks, without a shuffle.
struct PackedInt4 {
    PackedInt8 linear;           // all of it but the tiles, which have kInt4TileBytes; correction of weights m * q4
    const int32_t* group_ptr;    // [strips + 1]: first group of a strip; its last group may have fewer tiles
    const uint8_t* group_scale;  // [groups * 16]
};

// `common` as for int8: common.w is &w->linear, common.panels have the layout of gemm_int4's family.
struct GemmInt4Args {
    GemmInt8Args common;
    const PackedInt4* w;
};

// -- weights with a float16 scale a group ------------------------------------------
//
// g4   W[o, i] = d[o, g] * q[o, i] + m[o, g], q in 0 .. 15, g = i / kGroupWeights
// g6   W[o, i] = d[o, g] * (q[o, i] - 32),    q in 0 .. 63, that is m = -32 d
// g8   W[o, i] = d[o, g] * (q[o, i] - 128),   q in 0 .. 255, that is m = -128 d
//
// Activations have a scale a token and a shift a group: x[t, i] ~ s_t * 2^k[t, g] * a[t, i], a in [-127, 127], k in
// 0 .. kMaxGroupShift. Then
//
//   sum = 0; for g ascending:  sum = fma(float(2^k[t, g] * sum_i a[t, i] q[o, i]), d[o, g], sum)
//                              sum = fma(float(2^k[t, g] * sum_i a[t, i]), m[o, g], sum)
//   y[t, o] = act(fma(sum, s_t, bias[o])) (+ residual[t, o])
//
// with i over the group. Both integers are multiples of 2^k below 2^(21 + k), so that float() is exact, and all else is
// the same float32 operations in the same order on every level: results are equal bit for bit.

constexpr int kMaxGroupShift = 7;

// How a GEMM of such weights reads activations: panels of `mr` tokens, a block of kGroupTokenBytes * mr bytes for every
// group of 32 inputs: a as [8][mr][4] int8, the shifts k as [mr] int32, float(2^k * sum of a) as [mr] float32. A
// broadcast of anything of a token is base + constant. mr is the level's own (of KernelTable::layout), or for a few
// tokens their number, so that they fill L1 with nothing but themselves.
constexpr int kGroupTokenBytes = 40;
struct GroupPanels {
    int32_t mr;

    constexpr size_t panel_bytes(int64_t k) const {
        return static_cast<size_t>(round_up(k, kGroupWeights) / kGroupWeights * mr * kGroupTokenBytes);
    }
    constexpr size_t bytes(int64_t rows, int64_t k) const { return round_up(rows, mr) / mr * panel_bytes(k); }
};

// panels, scales <- x.  With m_t = max|x_t| and p the group's max|x|: k = 7 - e, e the largest of 0 .. 7 with
// p * 2^e <= m_t, a = round(x * (127 / m_t) * 2^e), s_t = m_t / 127 / 2^7. A row whose maximum is below kQuantizeFloor
// becomes exact zeros with s_t = 0; one with a NaN has s_t = NaN, as in quantize_rows, and shifts within their bounds.
// Inputs behind k and rows behind `rows` in the last panel are zeros.
struct QuantizeGroupsArgs {
    const float* x;  // [rows, k]
    int64_t ldx;
    int32_t rows;
    int32_t k;
    int32_t mr;
    void* panels;
    float* scales;  // [rows]
};

// One layout for all levels: a strip's groups follow one another in blocks, and a pass reads one stream.
//   g4   4 x 64 bytes: byte o * 4 + j of the c-th has q of output o and input 8 c + j in its low nibble, of 8 c + 4 + j
//        in its high one; 16 float16 d; 16 float16 m
//   g6   4 x 64 bytes of low nibbles in the same order; 2 x 64 bytes: the c-th has the two high bits of inputs
//        16 c + 4 h .. 16 c + 4 h + 3 in its bits 2 h and 2 h + 1; 16 float16 d
//   g8   8 x 64 bytes: byte o * 4 + j of the c-th is q of output o and input 4 c + j; 16 float16 d
constexpr int kG4BlockBytes = 320, kG6BlockBytes = 416, kG8BlockBytes = 544;
struct PackedGroups {
    int32_t bits;  // 4, 6 or 8
    int32_t n, k, strips, groups;
    const uint8_t* blocks;  // [strips][groups][block bytes], 64-byte aligned; outputs behind n: d = m = 0
    const float* bias;      // [strips * 16], 0 in the padding

    constexpr int64_t block_bytes() const {
        return bits == 4 ? kG4BlockBytes : bits == 6 ? kG6BlockBytes : kG8BlockBytes;
    }
};

// rows <= kGemvTokens where mr is not the level's own.
struct GemmGroupsArgs {
    const void* panels;
    const float* act_scales;  // [rows]
    int32_t rows;
    int32_t mr;  // of the panels
    const PackedGroups* w;
    int32_t strip_begin, strip_end;
    float* y;  // as in GemmInt8Args
    int64_t ldy, y_strip;
    const float* residual;
    int64_t ldr;
    Act act;
};

// f32 weights as [strips][k][16].
struct PackedF32 {
    int32_t n, k, strips;
    const float* w;
    const float* bias;  // [strips * 16]
};

// y[t, o] = act(sum_k x[t, k] W[o, k] + b[o]) (+ residual[t, o]); k ascends, one accumulator an output.
struct GemmF32Args {
    const float* x;  // [rows, k]
    int64_t ldx;
    int32_t rows;
    const PackedF32* w;
    int32_t strip_begin, strip_end;
    float* y;  // as in GemmInt8Args
    int64_t ldy, y_strip;
    const float* residual;
    int64_t ldr;
    Act act;
};

// y = (x - mean) / sqrt(var + eps) * gamma + beta, a row at a time; y may be x.
struct LayerNormArgs {
    const float* x;
    int64_t ldx;
    int32_t rows;
    int32_t width;
    const float* gamma;
    const float* beta;
    float eps;
    float* y;
    int64_t ldy;
};

// x[t, :n] <- softmax(scale * x[t, :n]) without the division: returns exponentials and 1 / sum.
struct SoftmaxArgs {
    float* x;
    int64_t ldx;
    int32_t rows;
    int32_t n;
    float scale;
    float* inv_sum;  // [rows]
};

// x[i] <- act(x[i]).
struct ActivationArgs {
    float* x;
    int64_t count;
    Act act;
};

// One head of one sequence: out[i] = sum_j softmax_j(scale q_i.k_j + bias_ij) v_j for queries
// query_begin .. query_end-1 over all n keys. No padding: n is the sequence's own length.
// Columns come in strips of 16, as linears write them: element (i, c) of q is q[c / 16 * q_strip + i * ldq + c % 16],
// and likewise k and v. Planes of strips (ld 16) keep a head's rows together; rows in one piece have strip 16.
struct AttentionArgs {
    const float* q;  // [n, head_dim]
    const float* k;
    const float* v;
    int64_t ldq, q_strip;
    int64_t ld, strip;  // of k and v
    int32_t n;
    int32_t head_dim;
    int32_t query_begin, query_end;
    float scale;
    float* out;  // [n, head_dim]
    int64_t ldo;
    float* scratch;  // attention_scratch_floats(n, head_dim), 64-byte aligned
    // bias_ij = bias[i * ldb + j], finite and of a magnitude of at most kMostBias; null: none. A vector over j - i is a
    // pointer to its element 0 with ldb = -1. Sign matching has none.
    const float* bias = nullptr;
    int64_t ldb = 0;
};
constexpr float kMostBias = 1e28f;  // far from the scores of lanes behind the last key, which are not attended to
constexpr int kAttentionRows = 8;   // queries that a kernel may hold at a time
constexpr int64_t attention_scratch_floats(int64_t n, int64_t head_dim) {
    // Keys and values in strips of 16, a block of scores and of queries. The 16-bit kernel needs half of the first (and
    // a quarter for queries), a block of scores and of sums, 16 rows that wait to be re-laid, and three scales a token.
    return round_up(head_dim, 16) * (round_up(n, 16) * 2 + kAttentionRows + 16) +
           (kAttentionRows + 3) * round_up(n, 16) + 64;
}

// The arithmetic of attention_int16, for linears that are int8 themselves. Rows of q and k become integers of at most
// L = int16_dot_limit(head_dim), rows of v integers of at most kValueLimit, each with its own scale max|x| / limit;
//   s_ij = scale sq_i sk_j (Q_i . K_j) + bias_ij,  e_ij = exp(s_ij - max_j s_ij),  P_ij = round(e_ij sv_j / max_j sv_j
//   * kWeightLimit) out_i = max_j sv_j / kWeightLimit * sum_j P_ij V_j / sum_j e_ij
// A NaN among the values makes all outputs NaN.
// int32 sums cannot overflow: L^2 head_dim < 2^31, and P V is summed over kWeightChunk keys at most before it becomes
// float (128 * 4095 * 4096 < 2^31).
constexpr int kWeightChunk = 128;
constexpr float kWeightLimit = 4095.0f, kValueLimit = 4096.0f;
constexpr float int16_dot_limit(int64_t head_dim) {
    int64_t limit = 32767;
    while (limit * limit * head_dim > 2147483647) limit = limit * 15 / 16;
    return static_cast<float>(limit);
}

// Sign-matching attention (Nagarajan et al. 2020, arXiv 2010.03688): a query attends only to the keys whose signs match
// its own best. With m_ij = how many of the head_dim signs (IEEE sign bits) of q_i and k_j are equal, query i keeps
//   - no key behind its own position p = offset + i, if causal;
//   - all keys that are left, if there are no more than `keep`;
//   - else those of `always`, the one at p, if causal the `window` last ones up to p, and of the rest the `keep` best
//     by m, among equals those of least index (if causal: of greatest).
// out_i = sum_j softmax_j(scale q_i.k_j) v_j over the kept keys, exactly.
// With `rest`, the r keys that query i does not keep stand as r keys like the mean of all n, with the mean value: one
// more score, scale q_i.mean(k) + log r. It makes up for most of the weight that attention without a peak loses.
//
// Signs are held as bits over keys ("planes"), 512 keys a block, so that matches are counted by adding single bits with
// logic operations, all keys of a register at a time, and the best are found on the counters' bits:
//   word (j / 512 * round_up(head_dim, 8) + c) * 8 + j % 512 / 64, bit j % 64: the sign of element c of key j
// with zeros behind head_dim and n.
struct SignAttentionArgs {
    AttentionArgs a;  // queries 0 .. are `query_end` rows of q; scratch: sign_attention_scratch_floats
    int32_t keep;
    const uint64_t* always;  // bits over keys, [round_up(n, 512) / 64], zeros behind n; null: none
    bool causal;
    int32_t offset;          // of query 0 among the keys: 0 for a whole sequence, n - 1 for the last token alone
    int32_t window;          // of causal attention
    bool rest;               // not causal, or the last position alone
    const uint64_t* planes;  // signs of all keys, kept beside a cache; null: taken from a.k
    uint64_t* kept;          // null in production; else [a.query_end, round_up(n, 512) / 64] receives the kept keys
};
constexpr int kSignBlock = 512;
constexpr int kMostSignDim = 248;  // elements of a head whose counts fit in eight bits
constexpr int64_t sign_words(int64_t n) { return round_up(n, kSignBlock) / 64; }
constexpr int64_t sign_plane_words(int64_t n, int64_t head_dim) { return sign_words(n) * round_up(head_dim, 8); }
constexpr int64_t sign_attention_scratch_floats(int64_t n, int64_t head_dim) {
    // Planes; for four queries at a time ten words of counts and sets a word of keys; indices and scores; queries,
    // means of keys and values, signs, and a block of keys' signs by bytes.
    return 2 * (sign_plane_words(n, head_dim) + 4 * 10 * sign_words(n)) + 4 * 2 * (round_up(n, 16) + 32) +
           (4 + 2 + 1 + 2) * round_up(head_dim, 16) + 64;
}

// out[t] = word[ids[t]] + position[positions[t]] (+ token_type[types[t]]).
struct EmbeddingArgs {
    const float* word;         // [vocab, width], or null when word_q or word_q4 is set
    const int8_t* word_q;      // [vocab, width], or null
    const float* word_scale;   // [vocab] of word_q, int4 word_q4 or rows of two bits
    const float* position;     // [max_positions, width]
    const float* token_type;   // [types, width] or null
    const int32_t* ids;        // [rows]
    const int32_t* positions;  // [rows]
    const int32_t* types;      // [rows] or null (all 0)
    int32_t rows;
    int32_t width;
    float* out;
    int64_t ldo;
    // int4 rows: nibbles q4 + 8, the even column in the low one; word = word_scale * m * q4, m for 32 columns.
    const uint8_t* word_q4 = nullptr;           // [vocab, ceil(width / 2)]
    const uint8_t* word_group_scale = nullptr;  // [vocab, ceil(width / 32)]
    // Rows with float16 scales (and for nibbles, which are 0 .. 15 then, offsets) of 32 columns, where these are set:
    // word = word_half_scale * q (+ word_half_offset), q of word_q or word_q4. With word_q2, six bits: q = word_q4 + 16
    // word_q2 - 32, the first of four columns in the low bits of word_q2's byte.
    const uint16_t* word_half_scale = nullptr;   // [vocab, ceil(width / 32)]
    const uint16_t* word_half_offset = nullptr;  // the same, or null
    const uint8_t* word_q2 = nullptr;            // [vocab, ceil(width / 4)]
    // Rows of two bits, and of four where a word is among word_wide: word = word_scale * m * (2 q - 3), q of word_q2,
    // or word_scale * m * q4. Each table holds its own rows only, in the order of ids.
    const int32_t* word_wide = nullptr;  // [wide], ascending; word_q4 [wide, ..], word_q2 [vocab - wide, ..]
    int32_t wide = 0;
};

}  // namespace approxrt
