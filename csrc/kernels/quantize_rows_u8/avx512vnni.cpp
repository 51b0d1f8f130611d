// Per-token quantisation into panels of unsigned bytes: here quantize_rows writes just these.
#include "args.h"

namespace approxrt {

void quantize_rows_avx512vnni(const QuantizeRowsArgs& a);

void quantize_rows_u8_avx512vnni(const QuantizeRowsArgs& a) { quantize_rows_avx512vnni(a); }

}  // namespace approxrt
