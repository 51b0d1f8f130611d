// Signs and sums beside a cache: the definition (decoder_args.h).
#include "sign_planes.h"
#include "kernels/common/sign_scalar.h"

namespace approxrt {
namespace {

void add_block(const CacheHead& cache, const void* rows, const float* scales, int64_t block, float* sums) {
    const int64_t d16 = round_up(cache.head_dim, 16);
    float* to = sums + (block + 1) * d16;
    for (int64_t c = 0; c < cache.head_dim; ++c) {
        to[c] = block ? to[c - d16] : 0.0f;
        for (int64_t j = block * kSumBlock; j < (block + 1) * kSumBlock; ++j)
            to[c] += element(cache, rows, scales, j, c);
    }
}

}  // namespace

void sign_index_scalar(const SignIndexArgs& a) {
    const CacheHead& cache = a.cache;
    float key[kMostSignDim], turned[kMostSignDim];
    for (int64_t j = a.begin; j < a.end; ++j) {
        for (int64_t c = 0; c < cache.head_dim; ++c) key[c] = element(cache, cache.key_rows, cache.key_scales, j, c);
        if (a.sign.rotation) turn(a.sign, key, cache.head_dim, a.sign.centre, turned);
        write_signs(a.sign.rotation ? turned : key, a.sign.signs, j, a.sign.planes);
        if (!a.sign.key_sums || j % kSumBlock != kSumBlock - 1) continue;
        add_block(cache, cache.key_rows, cache.key_scales, j / kSumBlock, a.sign.key_sums);
        add_block(cache, cache.values, cache.value_scales, j / kSumBlock, a.sign.value_sums);
    }
}

}  // namespace approxrt
