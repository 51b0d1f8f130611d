// Products of int8 matrices with AMX: blocks of 16 x 64 x 16 in one instruction of 16 cycles, eight times what vpdpbusd
// does in them. Included only by amx.cpp.
//
// Dense   C [16 tokens][16 outputs] += A [16 tokens][16 groups][4] . B [16 groups][16 outputs][4]
//
//   A is a block of a panel, B sixteen tiles of weights as they lie in memory (args.h): nothing is moved. Behind the
//   last group A is zero, and whatever lies in B behind a strip's tiles counts for nothing.
//
// Sparse  C [16 outputs][16 tokens] += A [16 outputs][16 groups][4] . B [16 groups][16 tokens][4]
//
//   A strip has tiles of groups of its own. Panels are taken apart into groups once for all strips; B is put together
//   of a strip's groups by copying 64 bytes each, and A is made of its tiles, turned. Both are some blocks ahead of the
//   products, since a tile that is loaded right after it was stored waits for the store. Sums are turned in the end.
//
// Up to 48 tokens (3 lanes of 16) are taken at a time. A sum is ready 52 cycles after a product began, so several go
// side by side: of lanes, and of two or four strips where they are dense.
#pragma once

#include "vec_avx512.h"

#include "args.h"
#include "epilogue.h"

namespace approxrt {
namespace {

constexpr int kLaneTokens = 16, kMostLanes = 3, kMostStrips = 4;
constexpr int kBlockTiles = 16, kGroupBytes = kLaneTokens * kTileK, kBlockBytes = kBlockTiles * kGroupBytes;
static_assert(kTileN * kTileK == kGroupBytes && kBlockTiles * kTileK == kBlockK, "a tile of weights is a row of B");
constexpr PanelLayout kLayout = byte_blocks(kLaneTokens);
// Groups that are held apart, times lanes: 72 KB. MiniLM's widest input (1536) has 384.
constexpr int kHeldGroups = 1152;
constexpr int kAheadBlocks = 6;

// -- tile registers: sums in 0 .. 5, A in 6, B in 7 ----------------------------------

struct alignas(64) TileShape {
    uint8_t palette = 1, start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr int kA = 6, kB = 7;

// While one lives, this thread's tile registers are 16 rows of 64 bytes. They are given back afterwards, so that
// context switches need not save 8 KB.
class Tiles {
  public:
    Tiles() {
        static constexpr TileShape kShape{};
        __asm__ volatile("ldtilecfg %0" : : "m"(kShape));
    }
    ~Tiles() { __asm__ volatile("tilerelease" ::); }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
};

// The intrinsics take literal numbers of registers alone.
template <int kTile>
inline __attribute__((always_inline)) void load_tile(const void* from, int64_t row_bytes) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(row_bytes), "i"(kTile) : "memory");
}
template <int kTile>
inline __attribute__((always_inline)) void store_tile(void* to) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(int64_t{64}), "i"(kTile) : "memory");
}
template <int kSums>
inline __attribute__((always_inline)) void zero_tile() {
    __asm__ volatile("tilezero %%tmm%c0" : : "i"(kSums));
}
template <int kSums>
inline __attribute__((always_inline)) void add_tokens_by_outputs() {  // A unsigned, B signed
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}
template <int kSums>
inline __attribute__((always_inline)) void add_outputs_by_tokens() {  // A signed, B unsigned
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}

// Calls body(Number<0>) .. body(Number<kCount - 1>).
template <int kValue>
struct Number {
    static constexpr int value = kValue;
};
template <int kCount, class Body>
inline __attribute__((always_inline)) void count_up(const Body& body) {
    if constexpr (kCount > 0) {
        count_up<kCount - 1>(body);
        body(Number<kCount - 1>{});
    }
}

// -- dense ---------------------------------------------------------------------

// kLanes lanes of tokens x kStrips strips.
template <int kLanes, int kStrips>
struct Dense {
    static_assert(kLanes * kStrips <= kA, "sums have registers of their own");

    // Sums begin with what is taken off: less [kStrips][16].
    static void begin(const int32_t* less) {
        count_up<kLanes * kStrips>([&](auto i) { load_tile<i.value>(less + i.value % kStrips * kTileN, 0); });
    }
    // panels: the first block of the first lane; w: of each strip its tiles.
    static void add(const char* panels, size_t panel_bytes, const char* const* w, int32_t blocks) {
        for (int32_t b = 0; b < blocks; ++b, panels += kBlockBytes)
            count_up<kLanes>([&](auto lane) {
                load_tile<kA>(panels + lane.value * panel_bytes, kBlockK);
                count_up<kStrips>([&](auto s) {
                    load_tile<kB>(w[s.value] + b * int64_t{kBlockBytes}, kGroupBytes);
                    add_tokens_by_outputs<lane.value * kStrips + s.value>();
                });
            });
    }
    // sums [kStrips][kMostLanes * 16 tokens][16]
    static void end(int32_t* sums) {
        count_up<kLanes * kStrips>([&](auto i) {
            constexpr int lane = i.value / kStrips, strip = i.value % kStrips;
            store_tile<i.value>(sums + (strip * kMostLanes + lane) * kLaneTokens * kTileN);
        });
    }
};

// -- squares turned --------------------------------------------------------------

// A square of 16 x 16 words of 4 bytes. four(row, i): words 4 i .. 4 i + 3 of a row; put(column, its words).
template <class Four, class Put>
inline __attribute__((always_inline)) void turn_square(const Four& four, const Put& put) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        __m512i row[4];
        // Put together of fours by loads: half of the work is left to the one port that shuffles.
#pragma GCC unroll 4
        for (int r = 0; r < 4; ++r) {
            row[r] = _mm512_castsi128_si512(four(r, i));
            row[r] = _mm512_mask_broadcast_i32x4(row[r], 0x00f0, four(r + 4, i));
            row[r] = _mm512_mask_broadcast_i32x4(row[r], 0x0f00, four(r + 8, i));
            row[r] = _mm512_mask_broadcast_i32x4(row[r], 0xf000, four(r + 12, i));
        }
        const __m512i a = _mm512_unpacklo_epi32(row[0], row[1]), b = _mm512_unpackhi_epi32(row[0], row[1]);
        const __m512i c = _mm512_unpacklo_epi32(row[2], row[3]), d = _mm512_unpackhi_epi32(row[2], row[3]);
        put(4 * i + 0, _mm512_unpacklo_epi64(a, c));
        put(4 * i + 1, _mm512_unpackhi_epi64(a, c));
        put(4 * i + 2, _mm512_unpacklo_epi64(b, d));
        put(4 * i + 3, _mm512_unpackhi_epi64(b, d));
    }
}

inline __attribute__((always_inline)) __m128i four_of(const char* row, int i) {
    return _mm_load_si128(reinterpret_cast<const __m128i*>(row + i * 16));
}

// to [16 groups][ld bytes], of 16 tokens each 64 <- from [16 tokens][16 groups][4]
inline void take_apart(const char* from, char* to, int64_t ld) {
    turn_square([=](int row, int i) { return four_of(from + row * kBlockK, i); },
                [=](int group, __m512i tokens) { _mm512_store_si512(to + group * ld, tokens); });
}

// to [16 outputs][16 groups][4] <- `count` tiles [16 outputs][4], and zeros for those that are missing.
inline void turn_tiles(const char* from, int32_t count, char* to) {
    const auto live = static_cast<__mmask16>((1u << count) - 1);
    turn_square([=](int tile, int i) { return four_of(from + (tile < count ? tile : 0) * kGroupBytes, i); },
                [=](int output, __m512i groups) {
                    _mm512_store_si512(to + output * kBlockK, _mm512_maskz_mov_epi32(live, groups));
                });
}

// to [16 tokens][16 outputs] <- sums [16 outputs][16 tokens], corrected.
inline void turn_sums(const int32_t* sums, const int32_t* correction, int32_t* to) {
    const __m512i less = _mm512_load_si512(correction);
    turn_square(
        [=](int output, int i) { return four_of(reinterpret_cast<const char*>(sums + output * kLaneTokens), i); },
        [=](int token, __m512i outputs) { _mm512_store_si512(to + token * kTileN, _mm512_sub_epi32(outputs, less)); });
}

// -- sparse --------------------------------------------------------------------

// kLanes lanes of tokens x one strip.
template <int kLanes>
struct Sparse {
    static void begin() {
        count_up<kLanes>([](auto lane) { zero_tile<lane.value>(); });
    }
    // w: [blocks] turned tiles; x: [blocks][kLanes] groups of tokens.
    static void add(const char* w, const char* x, int32_t blocks) {
        for (int32_t b = 0; b < blocks; ++b, w += kBlockBytes, x += kLanes * kBlockBytes) {
            load_tile<kA>(w, kBlockK);
            count_up<kLanes>([&](auto lane) {
                load_tile<kB>(x + lane.value * kBlockBytes, kGroupBytes);
                add_outputs_by_tokens<lane.value>();
            });
        }
    }
    // sums [kLanes][16 outputs][16 tokens]
    static void end(int32_t* sums) {
        count_up<kLanes>([&](auto lane) { store_tile<lane.value>(sums + lane.value * kTileN * kLaneTokens); });
    }
    // x [kLanes][16 groups][16 tokens][4] <- groups [.][kLanes][16 tokens][4] at offsets (of one lane).
    static void gather(const char* groups, const uint32_t* offsets, int32_t count, char* x) {
        for (int32_t i = 0; i < count; ++i) {
            const char* group = groups + size_t{offsets[i]} * kLanes;
#pragma GCC unroll 3
            for (int l = 0; l < kLanes; ++l)
                _mm512_store_si512(x + l * kBlockBytes + i * kGroupBytes, _mm512_load_si512(group + l * kGroupBytes));
        }
    }
};

// -- the order of it ---------------------------------------------------------------

// Weights: kChunkTiles, and tiles(slot, strip, first, count), where count tiles of a strip from `first` on lie as
// bytes, 64-byte aligned, until that is asked of the same slot again.
template <class Weights>
class Blocks {
  public:
    Blocks(const GemmInt8Args& a, Weights& weights)
        : a_(a), w_(*a.w), weights_(weights), panel_bytes_(kLayout.panel_bytes(a.w->k)) {}

    void run() {
        if (w_.offsets) {
            const int held = static_cast<int>(kHeldGroups / (round_up(w_.k, kBlockK) / kTileK));
            const int lanes = held < 1 ? 1 : held < kMostLanes ? held : kMostLanes;
            in_lanes(lanes, [&](int32_t t, auto here) { sparse<here.value>(t, held > 0); });
        } else {
            in_lanes(kMostLanes, [&](int32_t t, auto lanes) { dense<lanes.value>(t); });
        }
    }

  private:
    static int32_t blocks_of(int32_t tiles) { return (tiles + kBlockTiles - 1) / kBlockTiles; }
    const char* panel(int32_t t) const { return static_cast<const char*>(a_.panels) + t / kLaneTokens * panel_bytes_; }

    // body(first token, Number of lanes)
    template <class Body>
    void in_lanes(int most, const Body& body) {
        for (int32_t t = 0; t < a_.rows; t += most * kLaneTokens) {
            const int32_t left = a_.rows - t;
            if (left > 2 * kLaneTokens && most > 2) {
                body(t, Number<3>{});
            } else if (left > kLaneTokens && most > 1) {
                body(t, Number<2>{});
            } else {
                body(t, Number<1>{});
            }
        }
    }
    int32_t rows_of(int32_t t, int lanes) const {
        const int32_t left = a_.rows - t;
        return left < lanes * kLaneTokens ? left : lanes * kLaneTokens;
    }

    template <int kLanes>
    void dense(int32_t t) {
        constexpr int kTogether = kLanes == 1 ? 4 : 2;
        int32_t strip = a_.strip_begin;
        for (; strip + kTogether <= a_.strip_end; strip += kTogether) dense_strips<kLanes, kTogether>(t, strip);
        for (; strip < a_.strip_end; ++strip) dense_strips<kLanes, 1>(t, strip);
    }

    template <int kLanes, int kStrips>
    void dense_strips(int32_t t, int32_t strip) {
        using D = Dense<kLanes, kStrips>;
        alignas(64) int32_t less[kStrips * kTileN];
        for (int s = 0; s < kStrips; ++s) {
            const __m512i sum = _mm512_load_si512(w_.correction + (strip + s) * int64_t{kTileN});
            _mm512_store_si512(less + s * kTileN, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
        }
        D::begin(less);
        const int32_t tiles = w_.indptr[strip + 1] - w_.indptr[strip];
        for (int32_t first = 0; first < tiles; first += Weights::kChunkTiles) {
            const int32_t count = tiles - first < Weights::kChunkTiles ? tiles - first : Weights::kChunkTiles;
            const char* w[kStrips];
            for (int s = 0; s < kStrips; ++s) w[s] = weights_.tiles(s, strip + s, first, count);
            D::add(panel(t) + first / kBlockTiles * kBlockBytes, panel_bytes_, w, blocks_of(count));
        }
        D::end(sums_);
        for (int s = 0; s < kStrips; ++s)
            finish_int8(a_, t, rows_of(t, kLanes), strip + s, sums_ + s * kMostLanes * kLaneTokens * kTileN);
    }

    // held: there is room for all groups, taken apart.
    template <int kLanes>
    void sparse(int32_t t, bool held) {
        using S = Sparse<kLanes>;
        constexpr int kChunk = kAheadBlocks * kBlockTiles;
        if (held)
            for (int l = 0; l < kLanes; ++l) {
                const char* from = panel(t + l * kLaneTokens);
                char* to = groups_ + l * kGroupBytes;
                for (size_t at = 0; at < panel_bytes_; at += kBlockBytes)
                    take_apart(from + at, to + at * kLanes, kLanes * kGroupBytes);
            }
        for (int32_t strip = a_.strip_begin; strip < a_.strip_end; ++strip) {
            const int32_t tiles = w_.indptr[strip + 1] - w_.indptr[strip];
            const uint32_t* offsets = w_.offsets + w_.indptr[strip];
            S::begin();
            for (int32_t first = 0; first < tiles; first += kChunk) {
                const int32_t count = tiles - first < kChunk ? tiles - first : kChunk;
                const char* w = weights_.tiles(0, strip, first, count);
                for (int32_t i = 0, b = 0; i < count; i += kBlockTiles, ++b) {
                    const int32_t here = count - i < kBlockTiles ? count - i : kBlockTiles;
                    char* x = x_ + b * kLanes * kBlockBytes;
                    if (held) {
                        S::gather(groups_, offsets + first + i, here, x);
                    } else {
                        gather_words(panel(t), offsets + first + i, here, x);
                    }
                    turn_tiles(w + i * kGroupBytes, here, turned_ + b * kBlockBytes);
                }
                S::add(turned_, x_, blocks_of(count));
            }
            S::end(sums_);
            alignas(64) int32_t sums[kLanes * kLaneTokens * kTileN];
            for (int l = 0; l < kLanes; ++l)
                turn_sums(sums_ + l * kTileN * kLaneTokens, w_.correction + strip * int64_t{kTileN},
                          sums + l * kLaneTokens * kTileN);
            finish_int8(a_, t, rows_of(t, kLanes), strip, sums);
        }
    }

    // Of one lane, out of a panel that is too wide to be held apart.
    static void gather_words(const char* panel, const uint32_t* offsets, int32_t count, char* x) {
        const __m512i tokens = _mm512_mullo_epi32(
            _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(kBlockK));
        for (int32_t i = 0; i < count; ++i) {
            const char* group = panel + kLayout.offset(0, int64_t{offsets[i]} / kGroupBytes * kTileK);
            _mm512_store_si512(x + i * kGroupBytes, _mm512_i32gather_epi32(tokens, group, 1));
        }
    }

    const GemmInt8Args& a_;
    const PackedInt8& w_;
    Weights& weights_;
    const size_t panel_bytes_;
    alignas(64) int32_t sums_[kMostStrips * kMostLanes * kLaneTokens * kTileN];
    // Of sparse matrices: groups taken apart, and the operands of the next products.
    alignas(64) char groups_[kHeldGroups * kGroupBytes];
    alignas(64) char x_[kAheadBlocks * kMostLanes * kBlockBytes];
    alignas(64) char turned_[kAheadBlocks * kBlockBytes];
};

}  // namespace
}  // namespace approxrt
