#include "weights.h"

namespace approxrt {

int64_t Linear::macs(int32_t strip_begin, int32_t strip_end) const {
    if (int8_) {
        const PackedInt8& w = int8_->packed();
        return static_cast<int64_t>(w.indptr[strip_end] - w.indptr[strip_begin]) * kTileN * kTileK;
    }
    return static_cast<int64_t>(strip_end - strip_begin) * kTileN * f32_->packed().k;
}

void Linear::run(const KernelTable& kernels, const In& in, const Out& out, int32_t strip_begin,
                 int32_t strip_end) const {
    if (int8_) {
        GemmInt8Args args{};
        args.panels = in.quantized->panels();
        args.act_scales = in.quantized->scales();
        args.rows = in.rows;
        args.w = &int8_->packed();
        args.strip_begin = strip_begin;
        args.strip_end = strip_end;
        args.y = out.y;
        args.ldy = out.ldy;
        args.y_strip = out.y_strip;
        args.residual = out.residual;
        args.ldr = out.ldr;
        args.act = out.act;
        kernels.gemm_int8(args);
    } else {
        kernels.gemm_f32({in.x, in.ldx, in.rows, &f32_->packed(), strip_begin, strip_end, out.y, out.ldy, out.y_strip,
                          out.residual, out.ldr, out.act});
    }
}

}  // namespace approxrt
