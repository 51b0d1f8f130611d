// gemm_f32 for avx2: 6 rows a register block (micro_f32.h).
#include "vec_avx2.h"

#include "gemm_f32_body.h"

namespace approxrt {

void gemm_f32_avx2(const GemmF32Args& args) { gemm_f32<6>(args); }

}  // namespace approxrt
