// GEMM of weights with float16 scales a group: vnni.h, with the panels of AMX's level.
#include "vnni.h"

namespace approxrt {

void gemm_groups_amx(const GemmGroupsArgs& a) { gemm_groups_vnni<16>(a); }

}  // namespace approxrt
