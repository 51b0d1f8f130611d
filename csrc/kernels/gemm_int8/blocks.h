// The order in which an int8 GEMM visits its register blocks.
//
// Dense: strips outside. A strip's weights (k x 16 bytes) stay in L1 while panels stream by, both in
// memory order.
// Sparse: panels outside. Tiles of a strip pick groups of the panel at random, so the panel (2 to 18 KB)
// should be what stays in L1, and the tiles, read once in order, what streams.
#pragma once

#include "args.h"
#include "kernels/common/epilogue.h"
#include "kernels/common/with_rows.h"

namespace approxrt {
namespace {

struct Int8Block {
    const GemmInt8Args* a;
    const char* panel;
    int32_t row, strip;
};

template <int MR, template <int> class Rows>
inline void gemm_int8_blocks(const GemmInt8Args& a, const PanelLayout& layout) {
    const size_t panel_bytes = layout.panel_bytes(a.w->k);
    const char* panels = static_cast<const char*>(a.panels);
    const auto block = [&](int32_t t, int32_t g) {
        with_rows<MR, Rows>(a.rows - t < MR ? a.rows - t : MR, Int8Block{&a, panels + t / MR * panel_bytes, t, g});
    };
    if (a.w->offsets) {
        for (int32_t t = 0; t < a.rows; t += MR)
            for (int32_t g = a.strip_begin; g < a.strip_end; ++g) block(t, g);
    } else {
        for (int32_t g = a.strip_begin; g < a.strip_end; ++g)
            for (int32_t t = 0; t < a.rows; t += MR) block(t, g);
    }
}

}  // namespace
}  // namespace approxrt
