// Per-token quantisation into panels of 24 tokens of unsigned bytes: group k/4 of a token is 4 bytes.
#include "kernels/common/quantize_panels_avx512.h"

namespace approxrt {

void quantize_rows_avx512vnni(const QuantizeRowsArgs& a) { quantize_panels<Bytes>(a, byte_panels(24)); }

}  // namespace approxrt
