// sign_index for avx512; the body is shared, the lanes are not.
#include "vec_avx512.h"

#include "sign_index_body.h"

namespace approxrt {

void sign_index_avx512(const SignIndexArgs& args) { sign_index(args); }

}  // namespace approxrt
