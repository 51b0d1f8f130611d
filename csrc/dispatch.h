// Which kernel runs where. The only place that knows; everything else holds a KernelTable.
#pragma once

#include <string>
#include <vector>

#include "args.h"
#include "decoder_args.h"
#include "isa.h"
#include "pruning_args.h"

namespace approxrt {

struct KernelTable {
    Isa isa;
    PanelLayout layout;  // what gemm_int8 reads and quantize_rows writes
    void (*quantize_rows)(const QuantizeRowsArgs&);
    void (*gemm_int8)(const GemmInt8Args&);
    PanelLayout int4_layout;  // what gemm_int4 reads and quantize_rows_u8 writes: of as many tokens as `layout`
    void (*quantize_rows_u8)(const QuantizeRowsArgs&);
    void (*gemm_int4)(const GemmInt4Args&);
    void (*quantize_groups)(const QuantizeGroupsArgs&);
    void (*gemm_groups)(const GemmGroupsArgs&);  // its panels have layout.mr tokens, or are of a few tokens
    void (*gemm_f32)(const GemmF32Args&);
    void (*layer_norm)(const LayerNormArgs&);
    void (*softmax)(const SoftmaxArgs&);
    void (*activation)(const ActivationArgs&);
    void (*attention)(const AttentionArgs&);
    void (*attention_int16)(const AttentionArgs&);
    void (*sign_attention)(const SignAttentionArgs&);
    void (*embedding)(const EmbeddingArgs&);
    // Decoders.
    void (*rms_norm)(const RmsNormArgs&);
    void (*rope)(const RopeArgs&);
    void (*gated)(const GatedArgs&);
    void (*hadamard)(const HadamardArgs&);
    void (*cache_write)(const CacheWriteArgs&);
    void (*cached_attention)(const CachedAttentionArgs&);
    void (*sign_index)(const SignIndexArgs&);
    void (*sign_cached_attention)(const SignCachedAttentionArgs&);
    void (*quantize_tokens)(const QuantizeTokensArgs&);
    void (*gemv_int8)(const GemvInt8Args&);
    void (*gemv_int4)(const GemvInt4Args&);
    void (*shortlist)(const ShortlistArgs&);
    void (*word_logits)(const WordLogitsArgs&);
    // Pruning.
    void (*schur_complement)(const SchurComplementArgs&);
    // Whether the gemv kernels are the level's own. Where they are only the definition, few tokens go through gemm_*.
    bool fast_gemv;
    // Whether sparse int8 matrices are multiplied with tokens in lanes (PackedInt8).
    bool token_lanes;
    // Executes `iterations` rounds of register-only multiply-adds and returns how many products that
    // were: timed by the caller, the peak that benchmarks give shares of.
    int64_t (*peak_int8)(int64_t iterations);
    int64_t (*peak_f32)(int64_t iterations);
    // Byte `i` of a packed int8 tile holds canonical byte tile_order[i] (canonical: output * 4 + input).
    const uint8_t* tile_order;
};

struct KernelInfo {
    const char* family;
    Isa isa;
    int mr, nr, kr;
    bool compiled;
};

// Every line of kernel_list.inc.
const std::vector<KernelInfo>& kernel_list();

// The table for a level: per family the best kernel that the level includes.
const KernelTable& kernels_for(Isa isa);

// (family, level whose kernel was chosen) for a table, for `info` and the tests.
std::vector<std::pair<std::string, std::string>> chosen_kernels(Isa isa);

}  // namespace approxrt
