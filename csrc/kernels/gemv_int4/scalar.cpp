// int4 products of a few tokens: the definition. Nibbles as in PackedInt4 (args.h).
#include "decoder_args.h"

namespace approxrt {

void finish_gemv_scalar(const GemmInt8Args& a, int32_t t, int32_t strip, const int32_t* sums);

void gemv_int4_scalar(const GemvInt4Args& args) {
    const GemmInt8Args& a = args.common.common;
    const PackedInt8& w = *a.w;
    for (int32_t g = a.strip_begin; g < a.strip_end; ++g) {
        const int64_t group = args.common.w->group_ptr[g];
        for (int32_t t = 0; t < a.rows; ++t) {
            int32_t acc[kTileN] = {};
            for (int32_t i = 0; i < w.indptr[g + 1] - w.indptr[g]; ++i) {
                const int32_t tile = w.indptr[g] + i;
                const int64_t at = w.offsets ? w.offsets[tile] / args.panel_rows : i * kTileK;
                const int8_t* q = args.x->q + t * args.x->ld + at;
                const auto* bytes =
                    reinterpret_cast<const uint8_t*>(w.tiles) + static_cast<int64_t>(tile) * kInt4TileBytes;
                const uint8_t* m = args.common.w->group_scale + (group + i / kGroupTiles) * kTileN;
                for (int o = 0; o < kTileN; ++o)
                    for (int j = 0; j < kTileK; ++j) {
                        const int at4 = o * kTileK + j;
                        const int nibble = at4 < kInt4TileBytes ? bytes[at4] & 15 : bytes[at4 - kInt4TileBytes] >> 4;
                        acc[o] += static_cast<int32_t>(q[j]) * m[o] * (nibble - 8);
                    }
            }
            finish_gemv_scalar(a, t, g, acc);
        }
    }
}

}  // namespace approxrt
