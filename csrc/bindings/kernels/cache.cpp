// Keys and values of one head, written and attended to by single kernels.
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "panels.h"

namespace approxrt {
namespace {

// One key-value head.
class TestCache {
  public:
    TestCache(int64_t capacity, int32_t head_dim, const std::string& kind) {
        expect(capacity > 0 && head_dim > 0, "a cache has tokens and elements");
        CacheHead& h = head_;
        h.kind = kind == "f32" ? CacheKind::kF32 : kind == "f16" ? CacheKind::kF16 : CacheKind::kInt8;
        h.head_dim = head_dim;
        h.capacity = round_up(capacity, kCacheBlock);
        const int64_t size = cache_element_size(h.kind);
        keys_ = AlignedBuffer(cache_key_elements(h.capacity, head_dim) * size);
        values_ = AlignedBuffer(cache_value_elements(h.capacity, head_dim) * size);
        scales_ = AlignedBuffer(2 * h.capacity * sizeof(float));
        // What is not written is never used: bytes of 0xff are NaN in both kinds of floats.
        std::memset(keys_.as<char>(), 0xff, keys_.size());
        std::memset(values_.as<char>(), 0xff, values_.size());
        std::memset(scales_.as<char>(), 0xff, scales_.size());
        h.keys = keys_.as<void>();
        h.values = values_.as<void>();
        h.key_scales = scales_.as<float>();
        h.value_scales = h.key_scales + h.capacity;
    }

    void write(const py::array& keys_any, const py::array& values_any, int32_t position, const std::string& isa) {
        auto keys = typed<float>(keys_any, 2, "keys"), values = typed<float>(values_any, 2, "values");
        const auto rows = static_cast<int32_t>(keys.shape(0));
        expect(keys.shape(1) == head_.head_dim && values.shape(0) == rows && values.shape(1) == head_.head_dim,
               "keys and values must be [rows, head_dim]");
        expect(position >= 0 && position + rows <= head_.capacity, "the rows do not fit the cache");
        table(isa).cache_write({.keys = keys.data(),
                                .values = values.data(),
                                .ld = head_.head_dim,
                                .rows = rows,
                                .position = position,
                                .to = head_});
    }

    Array<float> attention(const py::array& q_any, int32_t position, float scale, const std::string& isa) const {
        auto q = typed<float>(q_any, 3, "q");
        const auto tokens = static_cast<int32_t>(q.shape(0)), heads = static_cast<int32_t>(q.shape(1));
        expect(q.shape(2) == head_.head_dim, "q must be [tokens, heads, head_dim]");
        expect(position >= 0 && position + tokens <= head_.capacity, "the tokens do not fit the cache");
        Array<float> out({tokens, heads, head_.head_dim});
        AlignedBuffer scratch(sizeof(float) * cached_attention_scratch_floats(position + tokens, head_.head_dim));
        const int64_t ld = static_cast<int64_t>(heads) * head_.head_dim;
        const CachedAttentionArgs a{.q = q.data(),
                                    .ldq = ld,
                                    .tokens = tokens,
                                    .heads = heads,
                                    .position = position,
                                    .cache = head_,
                                    .scale = scale,
                                    .out = out.mutable_data(),
                                    .ldo = ld,
                                    .scratch = scratch.as<float>()};
        py::gil_scoped_release release;
        table(isa).cached_attention(a);
        return out;
    }

    // Signs and sums of what is written from now on; rotation[o, c] and centre as in decoder_args.h, or None.
    void match_signs(const py::object& rotation, const py::object& centre, bool rest) {
        const int64_t d = head_.head_dim, d16 = round_up(d, 16), capacity = head_.capacity;
        expect(d <= kMostSignDim, "signs of at most " + std::to_string(kMostSignDim) + " elements");
        rows_ = AlignedBuffer(cache_value_elements(capacity, d) * cache_element_size(head_.kind));
        std::memset(rows_.as<char>(), 0xff, rows_.size());
        head_.key_rows = rows_.as<void>();
        sign_ = {};
        sign_.signs = static_cast<int32_t>(rotation.is_none() ? d : typed<float>(rotation, 2, "rotation").shape(0));
        expect(sign_.signs <= kMostSignDim, "at most " + std::to_string(kMostSignDim) + " signs");
        planes_.assign(sign_plane_words(capacity, sign_.signs), 0x9e3779b97f4a7c15ull);  // memory as it may be found
        sign_.planes = planes_.data();
        if (rest) {
            sums_.assign(2 * (capacity / kSumBlock + 1) * d16, NAN);
            sign_.key_sums = sums_.data();
            sign_.value_sums = sums_.data() + sums_.size() / 2;
        }
        if (rotation.is_none()) return;
        auto r = typed<float>(rotation, 2, "rotation"), m = typed<float>(centre, 1, "centre");
        const int64_t signs = sign_.signs, ld = round_up(signs, 16);
        expect(r.shape(1) == d && m.shape(0) == signs, "rotation and centre must fit the head");
        rotation_.assign(d * ld, 0.0f);
        centre_.assign(ld, 0.0f);
        for (int64_t o = 0; o < signs; ++o) {
            centre_[o] = m.at(o);
            for (int64_t c = 0; c < d; ++c) rotation_[c * ld + o] = r.at(o, c);
        }
        sign_.rotation = rotation_.data();
        sign_.centre = centre_.data();
    }

    void index(int32_t begin, int32_t end, const std::string& isa) const {
        expect(head_.key_rows && begin >= 0 && begin <= end && end <= head_.capacity, "no such tokens, or no signs");
        table(isa).sign_index({.cache = head_, .sign = sign_, .begin = begin, .end = end});
    }

    py::tuple sign_attention(const py::array& q_any, int32_t position, float scale, int32_t keep, int32_t window,
                             const std::string& isa) const {
        auto q = typed<float>(q_any, 3, "q");
        const auto tokens = static_cast<int32_t>(q.shape(0)), heads = static_cast<int32_t>(q.shape(1));
        expect(head_.key_rows && q.shape(2) == head_.head_dim && position >= 0 && position + tokens <= head_.capacity,
               "q must be [tokens, heads, head_dim] within a cache with signs");
        expect(keep > 0 && window > 0, "keep and window must be positive");
        expect(!sign_.key_sums || position + 1 >= kSumBlock, "the rest needs a whole block of 64 keys");
        const int64_t n = position + tokens, ld = static_cast<int64_t>(heads) * head_.head_dim;
        Array<float> out({tokens, heads, head_.head_dim});
        Array<uint64_t> kept({static_cast<int64_t>(tokens), static_cast<int64_t>(heads), sign_words(n)});
        AlignedBuffer scratch(sizeof(float) * sign_cached_scratch_floats(n, head_.head_dim));
        const SignCachedAttentionArgs a{.a = {.q = q.data(),
                                              .ldq = ld,
                                              .tokens = tokens,
                                              .heads = heads,
                                              .position = position,
                                              .cache = head_,
                                              .scale = scale,
                                              .out = out.mutable_data(),
                                              .ldo = ld,
                                              .scratch = scratch.as<float>()},
                                        .sign = sign_,
                                        .keep = keep,
                                        .window = window,
                                        .kept = kept.mutable_data()};
        {
            py::gil_scoped_release release;
            table(isa).sign_cached_attention(a);
        }
        return py::make_tuple(out, kept);
    }

  private:
    CacheHead head_{};
    SignHead sign_{};
    AlignedBuffer keys_, values_, scales_, rows_;
    std::vector<uint64_t> planes_;
    std::vector<float> sums_, rotation_, centre_;
};

}  // namespace

void bind_cache(py::module_& module) {
    py::class_<TestCache>(module, "Cache", "Keys and values of one head, full of NaN.")
        .def(py::init<int64_t, int32_t, const std::string&>(), py::arg("capacity"), py::arg("head_dim"),
             py::arg("kind") = "f16")
        .def("write", &TestCache::write, py::arg("keys"), py::arg("values"), py::arg("position"), py::arg("isa") = "")
        .def("attention", &TestCache::attention, py::arg("q"), py::arg("position"), py::arg("scale"),
             py::arg("isa") = "", "q [tokens, heads, head_dim], token t sees keys 0 .. position + t -> the same shape.")
        .def("match_signs", &TestCache::match_signs, py::arg("rotation") = py::none(), py::arg("centre") = py::none(),
             py::arg("rest") = false, "Keep signs (and sums) from now on; before anything is written.")
        .def("index", &TestCache::index, py::arg("begin"), py::arg("end"), py::arg("isa") = "",
             "Signs and sums of tokens that are written.")
        .def("sign_attention", &TestCache::sign_attention, py::arg("q"), py::arg("position"), py::arg("scale"),
             py::arg("keep"), py::arg("window") = 16, py::arg("isa") = "",
             "As attention, over the kept keys: (out, kept u64 [tokens, heads, words]: bits over keys).");
}

}  // namespace approxrt
