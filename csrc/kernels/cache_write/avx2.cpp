// cache_write for avx2; the body is shared, the lanes are not.
#include "kernels/common/vec_avx2.h"

#include "body.h"

namespace approxrt {

void cache_write_avx2(const CacheWriteArgs& args) { cache_write(args); }

}  // namespace approxrt
