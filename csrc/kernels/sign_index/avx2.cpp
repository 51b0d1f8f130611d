// sign_index for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void sign_index_avx2(const SignIndexArgs& args) { sign_index(args); }

}  // namespace approxrt
