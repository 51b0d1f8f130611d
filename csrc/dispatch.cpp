#include "dispatch.h"

#include <stdexcept>
#include <utility>

namespace approxrt {

using ArgsOf_quantize_rows = QuantizeRowsArgs;
using ArgsOf_gemm_int8 = GemmInt8Args;
using ArgsOf_quantize_rows_u8 = QuantizeRowsArgs;
using ArgsOf_gemm_int4 = GemmInt4Args;
using ArgsOf_quantize_groups = QuantizeGroupsArgs;
using ArgsOf_gemm_groups = GemmGroupsArgs;
using ArgsOf_gemm_f32 = GemmF32Args;
using ArgsOf_layer_norm = LayerNormArgs;
using ArgsOf_softmax = SoftmaxArgs;
using ArgsOf_activation = ActivationArgs;
using ArgsOf_attention = AttentionArgs;
using ArgsOf_attention_int16 = AttentionArgs;
using ArgsOf_sign_attention = SignAttentionArgs;
using ArgsOf_embedding = EmbeddingArgs;
using ArgsOf_rms_norm = RmsNormArgs;
using ArgsOf_rope = RopeArgs;
using ArgsOf_gated = GatedArgs;
using ArgsOf_hadamard = HadamardArgs;
using ArgsOf_cache_write = CacheWriteArgs;
using ArgsOf_cached_attention = CachedAttentionArgs;
using ArgsOf_sign_index = SignIndexArgs;
using ArgsOf_sign_cached_attention = SignCachedAttentionArgs;
using ArgsOf_quantize_tokens = QuantizeTokensArgs;
using ArgsOf_gemv_int8 = GemvInt8Args;
using ArgsOf_gemv_int4 = GemvInt4Args;
using ArgsOf_shortlist = ShortlistArgs;
using ArgsOf_word_logits = WordLogitsArgs;
using ArgsOf_schur_complement = SchurComplementArgs;

#define KERNEL(family, isa, mr, nr, kr) void family##_##isa(const ArgsOf_##family&);
#include "kernel_list.inc"
#undef KERNEL

int64_t peak_int8_scalar(int64_t iterations);
int64_t peak_f32_scalar(int64_t iterations);
#if APPROXRT_X86
int64_t peak_int8_avx2(int64_t iterations);
int64_t peak_f32_avx2(int64_t iterations);
int64_t peak_int8_avxvnni(int64_t iterations);
int64_t peak_int8_avx512(int64_t iterations);
int64_t peak_f32_avx512(int64_t iterations);
int64_t peak_int8_avx512vnni(int64_t iterations);
int64_t peak_int8_amx(int64_t iterations);
#endif

namespace {

constexpr Isa kIsa_scalar = Isa::kScalar;
constexpr Isa kIsa_avx2 = Isa::kAvx2;
constexpr Isa kIsa_avxvnni = Isa::kAvxVnni;
constexpr Isa kIsa_avx512 = Isa::kAvx512;
constexpr Isa kIsa_avx512vnni = Isa::kAvx512Vnni;
constexpr Isa kIsa_amx = Isa::kAmx;

struct Orders {
    uint8_t canonical[64];
    uint8_t pairs[64];
    Orders() {
        for (int i = 0; i < 64; ++i) canonical[i] = static_cast<uint8_t>(i);
        // vpmaddwd multiplies pairs of 16-bit values: bytes run (input pair, output, input within the pair).
        int i = 0;
        for (int pair = 0; pair < 2; ++pair)
            for (int o = 0; o < kTileN; ++o)
                for (int j = 0; j < 2; ++j) pairs[i++] = static_cast<uint8_t>(o * kTileK + pair * 2 + j);
    }
};
const Orders kOrders;

constexpr bool compiled(Isa isa) { return APPROXRT_X86 || isa == Isa::kScalar; }

// A baseline build has no other kernels to name.
#if APPROXRT_X86
#define APPROXRT_KERNEL_ADDRESS(family, isa) family##_##isa
#else
#define APPROXRT_KERNEL_ADDRESS(family, isa) family##_scalar
#endif

KernelTable make_table(Isa level) {
    KernelTable t{};
    t.isa = level;
    struct {
        PanelLayout quantize_rows, gemm_int8, quantize_rows_u8, gemm_int4;
    } layouts{};
    // What a level includes ascends within kernel_list.inc, so the last such line stays.
    const auto runs = [&](Isa isa) { return includes(level, isa) && compiled(isa); };
#define KERNEL(family, isa_, mr, nr, kr) \
    if (runs(kIsa_##isa_)) t.family = APPROXRT_KERNEL_ADDRESS(family, isa_);
#define PANELS(family, isa_, mr, nr, kr, layout_) \
    KERNEL(family, isa_, mr, nr, kr)              \
    if (runs(kIsa_##isa_)) layouts.family = layout_(mr);
#include "kernel_list.inc"
#undef KERNEL
    // The engine cuts blocks of tokens for both GEMMs at once, at whole panels.
    if (layouts.quantize_rows != layouts.gemm_int8 || layouts.quantize_rows_u8 != layouts.gemm_int4 ||
        layouts.gemm_int8.mr != layouts.gemm_int4.mr)
        throw std::logic_error(std::string("kernel_list.inc: panels of ") + isa_name(level) + " do not fit together");
    t.layout = layouts.gemm_int8;
    t.int4_layout = layouts.gemm_int4;
    t.tile_order = t.layout.element_size == 2 ? kOrders.pairs : kOrders.canonical;
    t.fast_gemv = level == Isa::kScalar || t.gemv_int8 != gemv_int8_scalar;
    t.token_lanes = level == Isa::kAvx512Vnni && two_wide_products();
    t.peak_int8 = peak_int8_scalar;
    t.peak_f32 = peak_f32_scalar;
#if APPROXRT_X86
    if (includes(level, Isa::kAvx2)) t.peak_int8 = peak_int8_avx2, t.peak_f32 = peak_f32_avx2;
    if (includes(level, Isa::kAvxVnni)) t.peak_int8 = peak_int8_avxvnni;
    if (includes(level, Isa::kAvx512)) t.peak_int8 = peak_int8_avx512, t.peak_f32 = peak_f32_avx512;
    if (includes(level, Isa::kAvx512Vnni)) t.peak_int8 = peak_int8_avx512vnni;
    if (includes(level, Isa::kAmx)) t.peak_int8 = peak_int8_amx;
#endif
    return t;
}

}  // namespace

const std::vector<KernelInfo>& kernel_list() {
    static const std::vector<KernelInfo> list = {
#define KERNEL(family, isa, mr, nr, kr) {#family, kIsa_##isa, mr, nr, kr, compiled(kIsa_##isa)},
#include "kernel_list.inc"
#undef KERNEL
    };
    return list;
}

const KernelTable& kernels_for(Isa isa) {
    static const KernelTable tables[kNumIsas] = {make_table(Isa::kScalar),     make_table(Isa::kAvx2),
                                                 make_table(Isa::kAvxVnni),    make_table(Isa::kAvx512),
                                                 make_table(Isa::kAvx512Vnni), make_table(Isa::kAmx)};
    return tables[static_cast<int>(isa)];
}

std::vector<std::pair<std::string, std::string>> chosen_kernels(Isa isa) {
    std::vector<std::pair<std::string, std::string>> chosen;
    for (const KernelInfo& info : kernel_list()) {
        if (!includes(isa, info.isa) || !info.compiled) continue;
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
