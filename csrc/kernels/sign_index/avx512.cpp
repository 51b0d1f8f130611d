// sign_index for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void sign_index_avx512(const SignIndexArgs& args) { sign_index(args); }

}  // namespace approxrt
