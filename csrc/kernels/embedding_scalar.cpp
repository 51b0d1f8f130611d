// Sum of word, position and token-type embeddings: the definition.
#include "../args.h"

namespace approxrt {

void embedding_scalar(const EmbeddingArgs& a) {
    for (int32_t t = 0; t < a.rows; ++t) {
        const int64_t id = a.ids[t];
        const float* position = a.position + static_cast<int64_t>(a.positions[t]) * a.width;
        const float* type =
            a.token_type ? a.token_type + static_cast<int64_t>(a.types ? a.types[t] : 0) * a.width : nullptr;
        for (int32_t i = 0; i < a.width; ++i) {
            float x =
                a.word_q ? static_cast<float>(a.word_q[id * a.width + i]) * a.word_scale[id] : a.word[id * a.width + i];
            if (type) x += type[i];
            a.out[t * a.ldo + i] = x + position[i];
        }
    }
}

}  // namespace approxrt
