#include "weights.h"

namespace approxrt {

Forms::Forms(std::initializer_list<const Linear*> readers) {
    for (const Linear* linear : readers) {
        int8 |= linear->input() == Input::kInt8;
        int4 |= linear->input() == Input::kInt4;
        groups |= linear->input() == Input::kGroups;
    }
}

// -- rows ----------------------------------------------------------------------

namespace {

bool one_layout(const KernelTable& kernels) { return kernels.layout == kernels.int4_layout; }

}  // namespace

void QuantizedRows::reserve(const KernelTable& kernels, Forms forms, int32_t rows, int64_t k) {
    if (forms.groups) groups_.reserve(kernels.layout.mr, rows, k);
    if (!forms.int8 && !forms.int4) return;
    scales_.get<float>(rows);
    if (forms.int8 || one_layout(kernels)) int8_.get<char>(kernels.layout.bytes(rows, k));
    if (forms.int4 && !one_layout(kernels)) int4_.get<char>(kernels.int4_layout.bytes(rows, k));
}

void QuantizedRows::fill(const KernelTable& kernels, Forms forms, int32_t first, const float* x, int64_t ldx,
                         int32_t rows, int32_t k) {
    if (forms.groups) groups_.fill(kernels, first, x, ldx, rows, k);
    if (!forms.int8 && !forms.int4) return;
    float* scales = scales_.get<float>(0) + first;
    if (forms.int8 || (forms.int4 && one_layout(kernels)))
        kernels.quantize_rows({.x = x,
                               .ldx = ldx,
                               .rows = rows,
                               .k = k,
                               .panels = int8_.get<char>(0) + kernels.layout.bytes(first, k),
                               .scales = scales});
    if (forms.int4 && !one_layout(kernels))
        kernels.quantize_rows_u8({.x = x,
                                  .ldx = ldx,
                                  .rows = rows,
                                  .k = k,
                                  .panels = int4_.get<char>(0) + kernels.int4_layout.bytes(first, k),
                                  .scales = scales});
}

const void* QuantizedRows::panels(const KernelTable& kernels, Input input) const {
    return (input == Input::kInt4 && !one_layout(kernels) ? int4_ : int8_).data<char>();
}

// -- linears -------------------------------------------------------------------

int32_t Linear::n() const {
    if (const auto* w = std::get_if<Int8Weights>(&weights_)) return w->packed().n;
    if (const auto* w = std::get_if<Int4Weights>(&weights_)) return w->packed().linear.n;
    if (const auto* w = std::get_if<GroupWeights>(&weights_)) return w->packed().n;
    return std::get<F32Weights>(weights_).packed().n;
}

int32_t Linear::k() const {
    if (const auto* w = std::get_if<Int8Weights>(&weights_)) return w->packed().k;
    if (const auto* w = std::get_if<Int4Weights>(&weights_)) return w->packed().linear.k;
    if (const auto* w = std::get_if<GroupWeights>(&weights_)) return w->packed().k;
    return std::get<F32Weights>(weights_).packed().k;
}

size_t Linear::bytes() const {
    return std::visit([](const auto& w) { return w.bytes(); }, weights_);
}

Span Linear::memory(int32_t strip_begin, int32_t strip_end) const {
    const auto tiles = [&](const PackedInt8& w, size_t tile_bytes) {
        return Span{reinterpret_cast<const char*>(w.tiles) + w.indptr[strip_begin] * tile_bytes,
                    (w.indptr[strip_end] - w.indptr[strip_begin]) * tile_bytes};
    };
    if (const auto* w = std::get_if<Int8Weights>(&weights_)) return tiles(w->packed(), kTileN * kTileK);
    if (const auto* w = std::get_if<Int4Weights>(&weights_)) return tiles(w->packed().linear, kInt4TileBytes);
    const size_t strips = strip_end - strip_begin;
    if (const auto* weights = std::get_if<GroupWeights>(&weights_)) {
        const PackedGroups& w = weights->packed();
        const size_t bytes = w.block_bytes() * w.groups;
        return {w.blocks + strip_begin * bytes, strips * bytes};
    }
    const PackedF32& w = std::get<F32Weights>(weights_).packed();
    const size_t floats = static_cast<size_t>(w.k) * kTileN;
    return {w.w + strip_begin * floats, strips * floats * sizeof(float)};
}

int64_t Linear::macs(int32_t strip_begin, int32_t strip_end) const {
    const auto tiles = [&](const PackedInt8& w) {
        return static_cast<int64_t>(w.indptr[strip_end] - w.indptr[strip_begin]) * kTileN * kTileK;
    };
    if (const auto* w = std::get_if<Int8Weights>(&weights_)) return tiles(w->packed());
    if (const auto* w = std::get_if<Int4Weights>(&weights_)) return tiles(w->packed().linear);
    return static_cast<int64_t>(strip_end - strip_begin) * kTileN * k();
}

void Linear::run(const KernelTable& kernels, const In& in, const Out& out, int32_t strip_begin,
                 int32_t strip_end) const {
    if (const auto* weights = std::get_if<F32Weights>(&weights_)) {
        kernels.gemm_f32({.x = in.x,
                          .ldx = in.ldx,
                          .rows = in.rows,
                          .w = &weights->packed(),
                          .strip_begin = strip_begin,
                          .strip_end = strip_end,
                          .y = out.y,
                          .ldy = out.ldy,
                          .y_strip = out.y_strip,
                          .residual = out.residual,
                          .ldr = out.ldr,
                          .act = out.act});
        return;
    }
    if (input() == Input::kGroups)
        return run_groups(kernels, in.quantized->groups(), in.rows, out, strip_begin, strip_end);
    GemmInt8Args args = integer_args(in.rows, in.quantized->scales(), out, strip_begin, strip_end);
    args.panels = in.quantized->panels(kernels, input());
    if (const auto* int4 = std::get_if<Int4Weights>(&weights_)) {
        kernels.gemm_int4({.common = args, .w = &int4->packed()});
    } else {
        kernels.gemm_int8(args);
    }
}

void Linear::run_few(const KernelTable& kernels, const TokenRows& rows, const Out& out, int32_t strip_begin,
                     int32_t strip_end) const {
    const GemmInt8Args args = integer_args(rows.rows, rows.scales, out, strip_begin, strip_end);
    if (const auto* int4 = std::get_if<Int4Weights>(&weights_)) {
        kernels.gemv_int4(
            {.common = {.common = args, .w = &int4->packed()}, .x = &rows, .panel_rows = kernels.int4_layout.mr});
    } else {
        kernels.gemv_int8({.common = args, .x = &rows, .panel_rows = kernels.layout.mr});
    }
}

void Linear::run_groups(const KernelTable& kernels, const GroupRows& in, int32_t rows, const Out& out,
                        int32_t strip_begin, int32_t strip_end) const {
    kernels.gemm_groups({.panels = in.panels(),
                         .act_scales = in.scales(),
                         .rows = rows,
                         .mr = in.mr(),
                         .w = &std::get<GroupWeights>(weights_).packed(),
                         .strip_begin = strip_begin,
                         .strip_end = strip_end,
                         .y = out.y,
                         .ldy = out.ldy,
                         .y_strip = out.y_strip,
                         .residual = out.residual,
                         .ldr = out.ldr,
                         .act = out.act});
}

GemmInt8Args Linear::integer_args(int32_t rows, const float* act_scales, const Out& out, int32_t strip_begin,
                                  int32_t strip_end) const {
    const auto* int4 = std::get_if<Int4Weights>(&weights_);
    GemmInt8Args args{};
    args.act_scales = act_scales;
    args.rows = rows;
    args.w = int4 ? &int4->packed().linear : &std::get<Int8Weights>(weights_).packed();
    args.strip_begin = strip_begin;
    args.strip_end = strip_end;
    args.y = out.y;
    args.ldy = out.ldy;
    args.y_strip = out.y_strip;
    args.residual = out.residual;
    args.ldr = out.ldr;
    args.act = out.act;
    return args;
}

}  // namespace approxrt
