// Per-token quantisation into panels of 6 tokens of unsigned bytes: what quantize_rows_u8 writes for AVX2.
#include "args.h"

namespace approxrt {

void quantize_rows_u8_avx2(const QuantizeRowsArgs& a);

void quantize_rows_avxvnni(const QuantizeRowsArgs& a) { quantize_rows_u8_avx2(a); }

}  // namespace approxrt
