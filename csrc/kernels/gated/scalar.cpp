// Gated activations (Shazeer 2020, arXiv 2002.05202): the definition.
#include "decoder_args.h"

namespace approxrt {

float activate_scalar(float x, Act act);

void gated_scalar(const GatedArgs& a) {
    for (int32_t t = 0; t < a.rows; ++t)
        for (int32_t i = 0; i < a.width; ++i)
            a.y[t * a.ldy + i] = activate_scalar(a.gate[t * a.ldg + i], a.act) * a.up[t * a.ldu + i];
}

}  // namespace approxrt
