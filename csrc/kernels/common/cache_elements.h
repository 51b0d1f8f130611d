// Elements of the cache on Vec: 16 of them in one piece, to and from float32.
#pragma once

#include "decoder_args.h"

namespace approxrt {
namespace {

constexpr int kVecs16 = 16 / Vec::kWidth;  // vectors in 16 elements

struct CacheF32 {
    using Type = float;
    static Vec get(const Type* p) { return load(p); }
    static void put(Type* p, Vec x, Vec) { store(p, x); }
};
struct CacheF16 {
    using Type = uint16_t;
    static Vec get(const Type* p) { return load_f16(p); }
    // x second: of NaN and a number, the second operand is what these return.
    static void put(Type* p, Vec x, Vec) { store_f16(p, min(set1(65504.0f), max(set1(-65504.0f), x))); }
};
struct CacheInt8 {
    using Type = int8_t;
    static Vec get(const Type* p) { return load_i8(p); }
    static void put(Type* p, Vec x, Vec inverse) {
        store_i8(p, min(max(mul(x, inverse), set1(-127.0f)), set1(127.0f)));
    }
};

template <template <class> class Body, class Args>
inline void with_cache_kind(CacheKind kind, const Args& args) {
    switch (kind) {
        case CacheKind::kF32:
            return Body<CacheF32>::run(args);
        case CacheKind::kF16:
            return Body<CacheF16>::run(args);
        case CacheKind::kInt8:
            return Body<CacheInt8>::run(args);
    }
}

}  // namespace
}  // namespace approxrt
