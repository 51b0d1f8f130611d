// int8 GEMM for AMX, dense and block-sparse. How: common/tiles_amx.h.
#include "kernels/common/tiles_amx.h"

namespace approxrt {
namespace {

struct Bytes {
    static constexpr int32_t kChunkTiles = 1 << 30;
    const PackedInt8* w;

    const char* tiles(int slot, int32_t strip, int32_t first, int32_t count) const {
        return reinterpret_cast<const char*>(w->tiles) + (w->indptr[strip] + first) * int64_t{kTileN * kTileK};
    }
};

}  // namespace

void gemm_int8_amx(const GemmInt8Args& a) {
    const Tiles tiles;
    Bytes weights{a.w};
    Blocks<Bytes>(a, weights).run();
}

}  // namespace approxrt
