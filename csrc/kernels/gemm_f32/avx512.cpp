// gemm_f32 for avx512: 8 rows a register block (common/micro_f32.h).
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void gemm_f32_avx512(const GemmF32Args& args) { gemm_f32<8>(args); }

}  // namespace approxrt
