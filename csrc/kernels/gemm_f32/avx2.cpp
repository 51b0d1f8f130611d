// gemm_f32 for avx2: 6 rows a register block (common/micro_f32.h).
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void gemm_f32_avx2(const GemmF32Args& args) { gemm_f32<6>(args); }

}  // namespace approxrt
