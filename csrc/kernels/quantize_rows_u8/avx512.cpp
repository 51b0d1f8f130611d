// Per-token quantisation into panels of 12 tokens of unsigned bytes, which gemm_int4 takes (avx2.cpp
// has why): group k/4 of a token is 4 bytes.
#include "kernels/common/quantize_panels_avx512.h"

namespace approxrt {

void quantize_rows_u8_avx512(const QuantizeRowsArgs& a) { quantize_panels<Bytes>(a, byte_panels(12)); }

}  // namespace approxrt
