// gemm_f32 for avx512: 8 rows a register block (micro_f32.h).
#include "vec_avx512.h"

#include "gemm_f32_body.h"

namespace approxrt {

void gemm_f32_avx512(const GemmF32Args& args) { gemm_f32<8>(args); }

}  // namespace approxrt
