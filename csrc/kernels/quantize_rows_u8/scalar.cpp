// Per-token quantisation into panels of unsigned bytes: here quantize_rows writes just these.
#include "args.h"

namespace approxrt {

void quantize_rows_scalar(const QuantizeRowsArgs& a);

void quantize_rows_u8_scalar(const QuantizeRowsArgs& a) { quantize_rows_scalar(a); }

}  // namespace approxrt
