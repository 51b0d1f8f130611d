// Sum of word, position and token-type embeddings: the definition.
#include <algorithm>

#include "args.h"
#include "half.h"

namespace approxrt {
namespace {

int nibble_at(const EmbeddingArgs& a, int64_t row, int32_t i) {
    const int byte = a.word_q4[row * ((a.width + 1) / 2) + i / 2];
    return i % 2 ? byte >> 4 : byte & 15;
}

int quarter_at(const EmbeddingArgs& a, int64_t row, int32_t i) {
    return a.word_q2[row * ((a.width + 3) / 4) + i / 4] >> 2 * (i % 4) & 3;
}

float word_at(const EmbeddingArgs& a, int64_t id, int32_t i) {
    if (a.word) return a.word[id * a.width + i];
    const int64_t groups = (a.width + kGroupWeights - 1) / kGroupWeights;
    const int64_t group = id * groups + i / kGroupWeights;
    if (a.word_q) {
        const auto q = static_cast<float>(a.word_q[id * a.width + i]);
        return q * (a.word_half_scale ? float_from_half(a.word_half_scale[group]) : a.word_scale[id]);
    }
    if (a.word_q2 && !a.word_half_scale) {
        const int32_t* end = a.word_wide + a.wide;
        const int32_t* at = std::lower_bound(a.word_wide, end, static_cast<int32_t>(id));
        const int64_t before = at - a.word_wide;
        const bool wide = at != end && *at == id;
        const int q = wide ? nibble_at(a, before, i) - 8 : 2 * quarter_at(a, id - before, i) - 3;
        return static_cast<float>(a.word_group_scale[group] * q) * a.word_scale[id];
    }
    const int nibble = nibble_at(a, id, i);
    if (a.word_q2)
        return static_cast<float>((nibble | quarter_at(a, id, i) << 4) - 32) *
               float_from_half(a.word_half_scale[group]);
    if (a.word_half_scale)
        return static_cast<float>(nibble) * float_from_half(a.word_half_scale[group]) +
               float_from_half(a.word_half_offset[group]);
    const int q4 = nibble - 8;
    return static_cast<float>(a.word_group_scale[group] * q4) * a.word_scale[id];
}

}  // namespace

void embedding_scalar(const EmbeddingArgs& a) {
    for (int32_t t = 0; t < a.rows; ++t) {
        const int64_t id = a.ids[t];
        const float* position = a.position + static_cast<int64_t>(a.positions[t]) * a.width;
        const float* type =
            a.token_type ? a.token_type + static_cast<int64_t>(a.types ? a.types[t] : 0) * a.width : nullptr;
        for (int32_t i = 0; i < a.width; ++i) {
            float x = word_at(a, id, i);
            if (type) x += type[i];
            a.out[t * a.ldo + i] = x + position[i];
        }
    }
}

}  // namespace approxrt
