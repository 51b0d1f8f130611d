// GEMM of weights with float16 scales a group: vnni.h.
#include "vnni.h"

namespace approxrt {

void gemm_groups_avx512vnni(const GemmGroupsArgs& a) { gemm_groups_vnni<24>(a); }

}  // namespace approxrt
