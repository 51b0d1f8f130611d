// The logits that come near to the largest: the definition (decoder_args.h).
#include <limits>

#include "decoder_args.h"

namespace approxrt {

void shortlist_scalar(const ShortlistArgs& a) {
    float largest = -std::numeric_limits<float>::infinity();
    int32_t found = 0;
    for (int32_t i = 0; i < a.count; ++i) {
        const float x = a.logits[i];
        largest = x > largest ? x : largest;
        if (x >= a.threshold) a.ids[found++] = a.first + i;
    }
    *a.largest = largest;
    *a.found = found;
}

}  // namespace approxrt
