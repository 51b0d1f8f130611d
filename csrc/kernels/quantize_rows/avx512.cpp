// Per-token quantisation into panels of 12 tokens of 16-bit values: group k/4 of a token is 8 bytes.
#include "kernels/common/quantize_panels_avx512.h"

namespace approxrt {

void quantize_rows_avx512(const QuantizeRowsArgs& a) { quantize_panels<Words>(a, word_panels(12)); }

}  // namespace approxrt
