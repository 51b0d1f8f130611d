// cache_write for avx512; the body is shared, the lanes are not.
#include "kernels/common/vec_avx512.h"

#include "body.h"

namespace approxrt {

void cache_write_avx512(const CacheWriteArgs& args) { cache_write(args); }

}  // namespace approxrt
