// The logits that come near to the largest, with AVX2.
#include "kernels/common/vec_avx2.h"

namespace approxrt {
namespace {

inline uint32_t reaches(Vec a, Vec b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ)));
}

}  // namespace
}  // namespace approxrt

#include "body.h"

namespace approxrt {

void shortlist_avx2(const ShortlistArgs& a) { shortlist_vectors(a); }

}  // namespace approxrt
