// Sum of embeddings on Vec; int8 rows are widened in registers, never unpacked to memory.
#pragma once

#include "../args.h"

namespace approxrt {
namespace {

inline void embedding(const EmbeddingArgs& a) {
    constexpr int W = Vec::kWidth;
    const int32_t whole = a.width / W * W;
    for (int32_t t = 0; t < a.rows; ++t) {
        const int64_t id = a.ids[t];
        const float* position = a.position + static_cast<int64_t>(a.positions[t]) * a.width;
        const float* type =
            a.token_type ? a.token_type + static_cast<int64_t>(a.types ? a.types[t] : 0) * a.width : nullptr;
        float* out = a.out + t * a.ldo;
        const int8_t* q = a.word_q ? a.word_q + id * a.width : nullptr;
        const float* w = a.word_q ? nullptr : a.word + id * a.width;
        const float s = q ? a.word_scale[id] : 0.0f;
        for (int32_t i = 0; i < whole; i += W) {
            Vec x = q ? mul(load_i8(q + i), set1(s)) : load(w + i);
            if (type) x = add(x, load(type + i));
            store(out + i, add(x, load(position + i)));
        }
        for (int32_t i = whole; i < a.width; ++i) {
            float x = q ? static_cast<float>(q[i]) * s : w[i];
            if (type) x += type[i];
            out[i] = x + position[i];
        }
    }
}

}  // namespace
}  // namespace approxrt
