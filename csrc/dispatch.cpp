#include "dispatch.h"

#include <cstring>
#include <utility>

namespace approxrt {

using ArgsOf_quantize_rows = QuantizeRowsArgs;
using ArgsOf_gemm_int8 = GemmInt8Args;
using ArgsOf_quantize_rows_u8 = QuantizeRowsArgs;
using ArgsOf_gemm_int4 = GemmInt4Args;
using ArgsOf_gemm_f32 = GemmF32Args;
using ArgsOf_layer_norm = LayerNormArgs;
using ArgsOf_softmax = SoftmaxArgs;
using ArgsOf_activation = ActivationArgs;
using ArgsOf_attention = AttentionArgs;
using ArgsOf_attention_int16 = AttentionArgs;
using ArgsOf_embedding = EmbeddingArgs;

#define KERNEL(family, isa, mr, nr, kr) void family##_##isa(const ArgsOf_##family&);
#include "kernel_list.inc"
#undef KERNEL

int64_t peak_int8_scalar(int64_t iterations);
int64_t peak_f32_scalar(int64_t iterations);
#if APPROXRT_X86
int64_t peak_int8_avx2(int64_t iterations);
int64_t peak_f32_avx2(int64_t iterations);
int64_t peak_f32_avx512(int64_t iterations);
int64_t peak_int8_avx512vnni(int64_t iterations);
#endif

namespace {

constexpr Isa kIsa_scalar = Isa::kScalar;
constexpr Isa kIsa_avx2 = Isa::kAvx2;
constexpr Isa kIsa_avx512 = Isa::kAvx512;
constexpr Isa kIsa_avx512vnni = Isa::kAvx512Vnni;

struct Orders {
    uint8_t canonical[64];
    uint8_t pairs[64];
    Orders() {
        for (int i = 0; i < 64; ++i) canonical[i] = static_cast<uint8_t>(i);
        // AVX2 multiplies pairs of 16-bit values: bytes run (input pair, output, input within the pair).
        int i = 0;
        for (int pair = 0; pair < 2; ++pair)
            for (int o = 0; o < kTileN; ++o)
                for (int j = 0; j < 2; ++j) pairs[i++] = static_cast<uint8_t>(o * kTileK + pair * 2 + j);
    }
};
const Orders kOrders;

KernelTable make_table(Isa level) {
    KernelTable t{};
    t.isa = level;
    Isa gemm_level = Isa::kScalar;
    // Lines ascend by level within kernel_list.inc, so the last one at or below `level` stays.
#define KERNEL(family, isa_, mr_, nr_, kr_)                                      \
    if (kIsa_##isa_ <= level && (APPROXRT_X86 || kIsa_##isa_ == Isa::kScalar)) { \
        assign(t, &KernelTable::family, APPROXRT_KERNEL_ADDRESS(family, isa_));  \
        if (!std::strcmp(#family, "gemm_int8")) {                                \
            gemm_level = kIsa_##isa_;                                            \
            t.layout.mr = mr_;                                                   \
        }                                                                        \
        if (!std::strcmp(#family, "gemm_int4")) t.int4_layout = {mr_, 1, 128};   \
    }
#if APPROXRT_X86
#define APPROXRT_KERNEL_ADDRESS(family, isa_) family##_##isa_
#else
#define APPROXRT_KERNEL_ADDRESS(family, isa_) family##_scalar
#endif
    auto assign = [](KernelTable& table, auto member, auto fn) { table.*member = fn; };
#include "kernel_list.inc"
#undef KERNEL
    const bool pairs = gemm_level == Isa::kAvx2;
    t.layout.element_size = pairs ? 2 : 1;
    t.layout.bias = pairs ? 0 : 128;
    t.tile_order = pairs ? kOrders.pairs : kOrders.canonical;
    t.peak_int8 = peak_int8_scalar;
    t.peak_f32 = peak_f32_scalar;
#if APPROXRT_X86
    if (level >= Isa::kAvx2) t.peak_int8 = peak_int8_avx2, t.peak_f32 = peak_f32_avx2;
    if (level >= Isa::kAvx512) t.peak_f32 = peak_f32_avx512;
    if (level >= Isa::kAvx512Vnni) t.peak_int8 = peak_int8_avx512vnni;
#endif
    return t;
}

}  // namespace

const std::vector<KernelInfo>& kernel_list() {
    static const std::vector<KernelInfo> list = {
#define KERNEL(family, isa, mr, nr, kr) {#family, kIsa_##isa, mr, nr, kr, APPROXRT_X86 || kIsa_##isa == Isa::kScalar},
#include "kernel_list.inc"
#undef KERNEL
    };
    return list;
}

const KernelTable& kernels_for(Isa isa) {
    static const KernelTable tables[kNumIsas] = {make_table(Isa::kScalar), make_table(Isa::kAvx2),
                                                 make_table(Isa::kAvx512), make_table(Isa::kAvx512Vnni)};
    return tables[static_cast<int>(isa)];
}

std::vector<std::pair<std::string, std::string>> chosen_kernels(Isa isa) {
    std::vector<std::pair<std::string, std::string>> chosen;
    for (const KernelInfo& info : kernel_list()) {
        if (info.isa > isa || !info.compiled) continue;
        bool found = false;
        for (auto& entry : chosen)
            if (entry.first == info.family) {
                entry.second = isa_name(info.isa);
                found = true;
            }
        if (!found) chosen.emplace_back(info.family, isa_name(info.isa));
    }
    return chosen;
}

}  // namespace approxrt
