#include "weights.h"

namespace approxrt {

int64_t Linear::macs() const {
    if (int8_) {
        const PackedInt8& w = int8_->packed();
        return static_cast<int64_t>(w.indptr[w.strips]) * kTileN * kTileK;
    }
    return static_cast<int64_t>(f32_->packed().n) * f32_->packed().k;
}

void Linear::run(const KernelTable& kernels, const Rows& r, ThreadScratch& scratch) const {
    if (int8_) {
        const PackedInt8& w = int8_->packed();
        GemmInt8Args args{};
        args.panels = scratch.panels.get<char>(0);
        args.act_scales = scratch.scales.get<float>(0);
        args.rows = r.rows;
        args.w = &w;
        args.strip_begin = 0;
        args.strip_end = w.strips;
        args.y = r.y;
        args.ldy = r.ldy;
        args.residual = r.residual;
        args.ldr = r.ldr;
        args.act = r.act;
        kernels.gemm_int8(args);
    } else {
        const PackedF32& w = f32_->packed();
        kernels.gemm_f32({r.x, r.ldx, r.rows, &w, 0, w.strips, r.y, r.ldy, r.residual, r.ldr, r.act});
    }
}

void quantize(const KernelTable& kernels, const float* x, int64_t ldx, int32_t rows, int32_t k,
              ThreadScratch& scratch) {
    char* panels = scratch.panels.get<char>(kernels.layout.bytes(rows, k));
    float* scales = scratch.scales.get<float>(rows);
    kernels.quantize_rows({x, ldx, rows, k, panels, scales});
}

}  // namespace approxrt
