#include "weights.h"

namespace approxrt {

int32_t Linear::n() const {
    if (const auto* w = std::get_if<Int8Weights>(&weights_)) return w->packed().n;
    if (const auto* w = std::get_if<Int4Weights>(&weights_)) return w->packed().linear.n;
    return std::get<F32Weights>(weights_).packed().n;
}

int32_t Linear::k() const {
    if (const auto* w = std::get_if<Int8Weights>(&weights_)) return w->packed().k;
    if (const auto* w = std::get_if<Int4Weights>(&weights_)) return w->packed().linear.k;
    return std::get<F32Weights>(weights_).packed().k;
}

size_t Linear::bytes() const {
    return std::visit([](const auto& w) { return w.bytes(); }, weights_);
}

int64_t Linear::macs() const {
    const auto tiles = [](const PackedInt8& w) { return static_cast<int64_t>(w.indptr[w.strips]) * kTileN * kTileK; };
    if (const auto* w = std::get_if<Int8Weights>(&weights_)) return tiles(w->packed());
    if (const auto* w = std::get_if<Int4Weights>(&weights_)) return tiles(w->packed().linear);
    return static_cast<int64_t>(n()) * k();
}

void Linear::run(const KernelTable& kernels, const Rows& r, ThreadScratch& scratch) const {
    if (const auto* weights = std::get_if<F32Weights>(&weights_)) {
        const PackedF32& w = weights->packed();
        kernels.gemm_f32({r.x, r.ldx, r.rows, &w, 0, w.strips, r.y, r.ldy, r.residual, r.ldr, r.act});
        return;
    }
    const auto* int4 = std::get_if<Int4Weights>(&weights_);
    GemmInt8Args args{};
    args.panels = panel_scratch(kernels, input(), scratch).get<char>(0);
    args.act_scales = scratch.scales.get<float>(0);
    args.rows = r.rows;
    args.w = int4 ? &int4->packed().linear : &std::get<Int8Weights>(weights_).packed();
    args.strip_begin = 0;
    args.strip_end = args.w->strips;
    args.y = r.y;
    args.ldy = r.ldy;
    args.residual = r.residual;
    args.ldr = r.ldr;
    args.act = r.act;
    if (int4) {
        kernels.gemm_int4({args, &int4->packed()});
    } else {
        kernels.gemm_int8(args);
    }
}

const PanelLayout& panel_layout(const KernelTable& kernels, Input input) {
    return input == Input::kInt4 ? kernels.int4_layout : kernels.layout;
}

Scratch& panel_scratch(const KernelTable& kernels, Input input, ThreadScratch& scratch) {
    return panel_layout(kernels, input) == kernels.layout ? scratch.panels : scratch.int4_panels;
}

void quantize(const KernelTable& kernels, std::initializer_list<const Linear*> linears, const float* x, int64_t ldx,
              int32_t rows, ThreadScratch& scratch) {
    bool done[2] = {};
    for (const Linear* linear : linears) {
        const Input input = linear->input();
        if (input == Input::kF32) continue;
        Scratch& panels = panel_scratch(kernels, input, scratch);
        const bool bytes = &panels == &scratch.int4_panels;
        if (done[bytes]) continue;
        done[bytes] = true;
        // Both families' kernels give the same scales.
        const QuantizeRowsArgs args{x,
                                    ldx,
                                    rows,
                                    linear->k(),
                                    panels.get<char>(panel_layout(kernels, input).bytes(rows, linear->k())),
                                    scratch.scales.get<float>(rows)};
        (bytes ? kernels.quantize_rows_u8 : kernels.quantize_rows)(args);
    }
}

}  // namespace approxrt
