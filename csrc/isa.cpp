#include "isa.h"

#include <cstdint>
#include <stdexcept>

#if APPROXRT_X86
#include <cpuid.h>
#endif

namespace approxrt {
namespace {

constexpr const char* kNames[kNumIsas] = {"scalar", "avx2", "avx512", "avx512vnni"};

#if APPROXRT_X86
// XCR0: which register files the operating system saves on a context switch.
uint64_t xcr0() {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (static_cast<uint64_t>(hi) << 32) | lo;
}

bool bit(uint32_t word, int index) { return (word >> index) & 1u; }

Isa detect() {
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return Isa::kScalar;
    const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
    if (!osxsave || !avx || !fma || !f16c) return Isa::kScalar;
    const uint64_t saved = xcr0();
    constexpr uint64_t kYmm = 0x6;   // SSE and AVX state
    constexpr uint64_t kZmm = 0xe0;  // opmask, upper ZMM, ZMM16-31
    if ((saved & kYmm) != kYmm) return Isa::kScalar;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !bit(b, 5)) return Isa::kScalar;
    const bool avx512 = bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
    if (!avx512 || (saved & kZmm) != kZmm) return Isa::kAvx2;
    return bit(c, 11) ? Isa::kAvx512Vnni : Isa::kAvx512;
}
#else
Isa detect() { return Isa::kScalar; }
#endif

std::string list_names(const std::vector<Isa>& isas) {
    std::string text;
    for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
    return text;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa detected_isa() {
    static const Isa isa = detect();
    return isa;
}

std::vector<Isa> supported_isas() {
    std::vector<Isa> isas;
    for (int i = 0; i <= static_cast<int>(detected_isa()); ++i) isas.push_back(static_cast<Isa>(i));
    return isas;
}

Isa resolve_isa(const std::string& name) {
    if (name.empty()) return detected_isa();
    for (int i = 0; i < kNumIsas; ++i) {
        if (name != kNames[i]) continue;
        const Isa isa = static_cast<Isa>(i);
        if (isa > detected_isa()) {
            throw std::invalid_argument("instruction set '" + name + "' was asked for, but this machine has only: " +
                                        list_names(supported_isas()) + "; choose one of these or unset APPROXRT_ISA");
        }
        return isa;
    }
    throw std::invalid_argument("unknown instruction set '" + name +
                                "'; the levels are: scalar, avx2, avx512, avx512vnni (APPROXRT_ISA)");
}

}  // namespace approxrt
