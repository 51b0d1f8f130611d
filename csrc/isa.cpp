#include "isa.h"

#include <algorithm>
#include <cstdint>
#include <stdexcept>

#if APPROXRT_X86
#include <cpuid.h>
#endif
#if APPROXRT_X86 && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace approxrt {
namespace {

constexpr const char* kNames[kNumIsas] = {"scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "amx"};

#if APPROXRT_X86
// XCR0: which register files the operating system saves on a context switch.
uint64_t xcr0() {
    uint32_t lo, hi;
    __asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return (static_cast<uint64_t>(hi) << 32) | lo;
}

// A process has to ask Linux for the 8 KB of tile registers; the leave then is that of all its threads. A system that
// does not know the question, or a sandbox that does not let it pass, says no.
bool may_use_tiles() {
#ifdef __linux__
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
    return false;
#endif
}

bool bit(uint32_t word, int index) { return (word >> index) & 1u; }

std::vector<Isa> detect() {
    std::vector<Isa> found = {Isa::kScalar};
    uint32_t a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return found;
    const bool fma = bit(c, 12), osxsave = bit(c, 27), avx = bit(c, 28), f16c = bit(c, 29);
    if (!osxsave || !avx || !fma || !f16c) return found;
    const uint64_t saved = xcr0();
    constexpr uint64_t kYmm = 0x6;        // SSE and AVX state
    constexpr uint64_t kZmm = 0xe0;       // opmask, upper ZMM, ZMM16-31
    constexpr uint64_t kTiles = 3 << 17;  // TILECFG and TILEDATA
    if ((saved & kYmm) != kYmm) return found;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !bit(b, 5)) return found;
    found.push_back(Isa::kAvx2);
    const bool bmi2 = bit(b, 8);
    const bool avx512 = bmi2 && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31) && (saved & kZmm) == kZmm;
    const bool avx512_vnni = bit(c, 11), amx = bit(d, 24) && bit(d, 25);
    // Leaf 7 says in eax how many subleaves there are.
    if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 4)) found.push_back(Isa::kAvxVnni);
    if (avx512) found.push_back(Isa::kAvx512);
    if (!avx512 || !avx512_vnni) return found;
    found.push_back(Isa::kAvx512Vnni);
    if (amx && (saved & kTiles) == kTiles && may_use_tiles()) found.push_back(Isa::kAmx);
    return found;
}
#else
std::vector<Isa> detect() { return {Isa::kScalar}; }
#endif

std::string list_names(const std::vector<Isa>& isas) {
    std::string text;
    for (Isa isa : isas) text += (text.empty() ? "" : ", ") + std::string(isa_name(isa));
    return text;
}

}  // namespace

const char* isa_name(Isa isa) { return kNames[static_cast<int>(isa)]; }

const std::vector<Isa>& supported_isas() {
    static const std::vector<Isa> isas = detect();
    return isas;
}

Isa detected_isa() { return supported_isas().back(); }

bool two_wide_products() {
#if APPROXRT_X86
    uint32_t a, b, c, d;
    constexpr uint32_t kGenu = 0x756e6547, kIneI = 0x49656e69, kNtel = 0x6c65746e;
    return __get_cpuid(0, &a, &b, &c, &d) && b == kGenu && d == kIneI && c == kNtel;
#else
    return false;
#endif
}

Isa resolve_isa(const std::string& name) {
    if (name.empty()) return detected_isa();
    const std::vector<Isa>& here = supported_isas();
    std::vector<Isa> all;
    for (int i = 0; i < kNumIsas; ++i) {
        const Isa isa = static_cast<Isa>(i);
        all.push_back(isa);
        if (name != kNames[i]) continue;
        if (std::find(here.begin(), here.end(), isa) != here.end()) return isa;
        throw std::invalid_argument("instruction set '" + name + "' was asked for, but this machine has only: " +
                                    list_names(here) + "; choose one of these or unset APPROXRT_ISA");
    }
    throw std::invalid_argument("unknown instruction set '" + name + "'; the levels are: " + list_names(all) +
                                " (APPROXRT_ISA)");
}

}  // namespace approxrt
