// The logits that come near to the largest, with AVX-512.
#include "kernels/common/vec_avx512.h"

namespace approxrt {
namespace {

inline uint32_t reaches(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ); }

}  // namespace
}  // namespace approxrt

#include "body.h"

namespace approxrt {

void shortlist_avx512(const ShortlistArgs& a) { shortlist_vectors(a); }

}  // namespace approxrt
