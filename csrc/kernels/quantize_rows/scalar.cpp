// Per-token symmetric quantisation, the definition: q = round_half_even(x * (127 / max|x|)),
// clamped to [-127, 127], all in float32 so that every level yields the same integers.
#include <cstring>

#include "kernels/common/quantize_scalar.h"

namespace approxrt {

void quantize_rows_scalar(const QuantizeRowsArgs& a) {
    constexpr PanelLayout layout = byte_panels(8);
    auto* base = static_cast<uint8_t*>(a.panels);
    std::memset(base, layout.bias, layout.bytes(a.rows, a.k));
    for (int32_t t = 0; t < a.rows; ++t) {
        const float* x = a.x + t * a.ldx;
        const auto max = std::bit_cast<float>(peak_of(x, a.k));
        if (!is_live(max)) {
            a.scales[t] = 0.0f;
            continue;
        }
        a.scales[t] = max * (1.0f / 127.0f);
        const float inv = 127.0f / max;
        uint8_t* panel = base + (t / layout.mr) * layout.panel_bytes(a.k);
        for (int32_t i = 0; i < a.k; ++i)
            panel[(i / kTileK) * layout.group_bytes() + (t % layout.mr) * kTileK + i % kTileK] =
                static_cast<uint8_t>(quantized(x[i] * inv) + layout.bias);
    }
}

}  // namespace approxrt
