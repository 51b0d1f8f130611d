// Instruction-set levels: what this CPU and operating system can run, and what the user forced.
#pragma once

#include <string>
#include <vector>

namespace approxrt {

//   scalar      baseline x86-64 (or any other CPU)
//   avx2        AVX2, FMA, F16C
//   avxvnni     avx2 + AVX-VNNI: vpdpbusd and vpdpwssd on 256 bits, VEX-encoded
//   avx512      avx2 + AVX-512 F, BW, VL, DQ and BMI2, which all such CPUs have
//   avx512vnni  avx512 + AVX512-VNNI
//   amx         avx512vnni + AMX-TILE, AMX-INT8, and the system's leave to use their registers
// Ordered by preference where a CPU has several. That is no order of inclusion: CPUs with AVX-512, VNNI included, may
// lack AVX-VNNI, and the other way round (includes()).
enum class Isa { kScalar = 0, kAvx2 = 1, kAvxVnni = 2, kAvx512 = 3, kAvx512Vnni = 4, kAmx = 5 };

constexpr int kNumIsas = 6;

// Whether a machine at `level` executes the kernels of level `kernel`. The levels that one level includes are a line:
// of two such, the one further in the enumeration includes the other.
constexpr bool includes(Isa level, Isa kernel) {
    switch (kernel) {
        case Isa::kScalar:
            return true;
        case Isa::kAvx2:
            return level != Isa::kScalar;
        case Isa::kAvx512:
            return level == Isa::kAvx512 || level == Isa::kAvx512Vnni || level == Isa::kAmx;
        case Isa::kAvx512Vnni:
            return level == Isa::kAvx512Vnni || level == Isa::kAmx;
        case Isa::kAvxVnni:
        case Isa::kAmx:
            return level == kernel;
    }
    return false;
}

const char* isa_name(Isa isa);

// Levels that cpuid reports and for which the operating system saves the registers (XGETBV), in the enumeration's
// order.
const std::vector<Isa>& supported_isas();

// The last of them.
Isa detected_isa();

// Whether the CPU is of those that execute two 512-bit products a cycle, but load few broadcasts: Intel's with AVX-512.
// (Its small ones execute one, and lose little by being taken for the others.)
bool two_wide_products();

// Parses a level's name; empty means `detected_isa()`. Throws std::invalid_argument on an unknown
// name and on a level that this CPU lacks: a forced level never falls back.
Isa resolve_isa(const std::string& name);

}  // namespace approxrt
