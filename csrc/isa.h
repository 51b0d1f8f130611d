// Instruction-set levels: what this CPU and operating system can run, and what the user forced.
#pragma once

#include <string>
#include <vector>

namespace approxrt {

// Ordered: a level implies all before it.
//   scalar      baseline x86-64 (or any other CPU)
//   avx2        AVX2 + FMA
//   avx512      AVX-512 F, BW, VL, DQ
//   avx512vnni  avx512 + AVX512-VNNI
enum class Isa { kScalar = 0, kAvx2 = 1, kAvx512 = 2, kAvx512Vnni = 3 };

constexpr int kNumIsas = 4;

const char* isa_name(Isa isa);

// The best level that cpuid reports and for which the operating system saves the registers (XGETBV).
Isa detected_isa();

// Levels that can run here, ascending.
std::vector<Isa> supported_isas();

// Parses a level's name; empty means `detected_isa()`. Throws std::invalid_argument on an unknown
// name and on a level that this CPU lacks: a forced level never falls back.
Isa resolve_isa(const std::string& name);

}  // namespace approxrt
