// Quantised activations for tests and benchmarks of kernels.
#pragma once

#include <cstring>
#include <string>

#include "pack.h"
#include "bindings/arrays.h"

namespace approxrt {

inline const KernelTable& table(const std::string& isa) { return kernels_for(resolve_isa(isa)); }

// Activations of one call in one family's layout: gemm_int8's, or gemm_int4's.
struct Panels {
    PanelLayout layout;
    int32_t rows, k;
    AlignedBuffer data, scales;

    Panels(const PanelLayout& l, int64_t rows_, int64_t k_)
        : layout(l),
          rows(static_cast<int32_t>(rows_)),
          k(static_cast<int32_t>(k_)),
          data(l.bytes(rows_, k_)),
          scales(sizeof(float) * rows_) {
        expect(rows > 0 && k > 0, "the activations are empty");
    }

    // Address of element (token, input).
    char* at(int64_t token, int64_t input) const {
        return data.as<char>() + token / layout.mr * layout.panel_bytes(k) + layout.offset(token % layout.mr, input);
    }

    void check(const PanelLayout& needed, int32_t inputs) const {
        expect(k == inputs, "panels have " + std::to_string(k) + " inputs, the weights " + std::to_string(inputs));
        expect(layout == needed, "panels were made for another instruction set or family");
    }
};

// Tokens of one call as gemv kernels read them.
struct Tokens {
    AlignedBuffer q, u, sums, scales;
    TokenRows rows;

    Tokens(int64_t count, int64_t k)
        : q(count * token_row_bytes(k)),
          u(count * token_row_bytes(k)),
          sums(sizeof(int32_t) * count * token_row_bytes(k) / kGroupWeights),
          scales(sizeof(float) * count),
          rows{.q = q.as<int8_t>(),
               .u = u.as<uint8_t>(),
               .sums = sums.as<int32_t>(),
               .scales = scales.as<float>(),
               .rows = static_cast<int32_t>(count),
               .k = static_cast<int32_t>(k),
               .ld = token_row_bytes(k)} {
        expect(count > 0 && k > 0, "the activations are empty");
    }

    void check(int32_t inputs) const {
        expect(rows.k == inputs,
               "tokens have " + std::to_string(rows.k) + " inputs, the weights " + std::to_string(inputs));
        expect(rows.rows <= kGemvTokens, "gemv kernels take at most " + std::to_string(kGemvTokens) + " tokens");
    }
};

}  // namespace approxrt
