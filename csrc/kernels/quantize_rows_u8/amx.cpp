// Per-token quantisation into blocks of unsigned bytes: here quantize_rows writes just these.
#include "args.h"

namespace approxrt {

void quantize_rows_amx(const QuantizeRowsArgs& a);

void quantize_rows_u8_amx(const QuantizeRowsArgs& a) { quantize_rows_amx(a); }

}  // namespace approxrt
