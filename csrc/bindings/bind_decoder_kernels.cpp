// Kernels of decoders for tests and benchmarks (bind_kernels.cpp).
#include <cmath>
#include <memory>

#include "panels.h"

namespace approxrt {
namespace {

Array<float> rms_norm(const py::array& x_any, const py::array& gamma_any, float eps, const std::string& isa) {
    auto x = typed<float>(x_any, 2, "x"), gamma = typed<float>(gamma_any, 1, "gamma");
    const auto rows = static_cast<int32_t>(x.shape(0)), width = static_cast<int32_t>(x.shape(1));
    expect(gamma.shape(0) == width, "gamma needs one value a column");
    Array<float> y({rows, width});
    table(isa).rms_norm({x.data(), width, rows, width, gamma.data(), eps, y.mutable_data(), width});
    return y;
}

Array<float> rope(const py::array& x_any, const py::array& cos_any, const py::array& sin_any, const std::string& isa) {
    auto x = typed<float>(x_any, 3, "x"), cos = typed<float>(cos_any, 2, "cos"), sin = typed<float>(sin_any, 2, "sin");
    const auto rows = static_cast<int32_t>(x.shape(0)), heads = static_cast<int32_t>(x.shape(1)),
               dim = static_cast<int32_t>(x.shape(2));
    expect(dim % 2 == 0, "head_dim must be even");
    for (const auto* angles : {&cos, &sin})
        expect(angles->shape(0) == rows && angles->shape(1) == dim / 2, "cos and sin must be [rows, head_dim / 2]");
    Array<float> y({rows, heads, dim});
    std::memcpy(y.mutable_data(), x.data(), sizeof(float) * x.size());
    table(isa).rope({y.mutable_data(), static_cast<int64_t>(heads) * dim, rows, heads, dim, cos.data(), sin.data()});
    return y;
}

Array<float> gated(const py::array& gate_any, const py::array& up_any, const std::string& act, const std::string& isa) {
    auto gate = typed<float>(gate_any, 2, "gate"), up = typed<float>(up_any, 2, "up");
    const auto rows = static_cast<int32_t>(gate.shape(0)), width = static_cast<int32_t>(gate.shape(1));
    expect(up.shape(0) == rows && up.shape(1) == width, "gate and up must have the same shape");
    Array<float> y({rows, width});
    table(isa).gated({gate.data(), width, up.data(), width, y.mutable_data(), width, rows, width, parse_act(act)});
    return y;
}

Array<float> hadamard(const py::array& x_any, int32_t size, const std::string& isa) {
    auto x = typed<float>(x_any, 2, "x");
    const auto rows = static_cast<int32_t>(x.shape(0)), width = static_cast<int32_t>(x.shape(1));
    expect(size >= 16 && size <= kLargestHadamard && (size & (size - 1)) == 0 && width % size == 0,
           "size must be a power of 2 from 16 to 128 that divides the width");
    Array<float> y({rows, width});
    table(isa).hadamard({x.data(), width, y.mutable_data(), width, rows, width, size});
    return y;
}

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
        table(isa).cache_write({keys.data(), values.data(), head_.head_dim, rows, position, head_});
    }

    Array<float> attention(const py::array& q_any, int32_t position, float scale, const std::string& isa) const {
        auto q = typed<float>(q_any, 3, "q");
        const auto tokens = static_cast<int32_t>(q.shape(0)), heads = static_cast<int32_t>(q.shape(1));
        expect(q.shape(2) == head_.head_dim, "q must be [tokens, heads, head_dim]");
        expect(position >= 0 && position + tokens <= head_.capacity, "the tokens do not fit the cache");
        Array<float> out({tokens, heads, head_.head_dim});
        AlignedBuffer scratch(sizeof(float) * cached_attention_scratch_floats(position + tokens, head_.head_dim));
        const int64_t ld = static_cast<int64_t>(heads) * head_.head_dim;
        const CachedAttentionArgs a{
            q.data(), ld, tokens, heads, position, head_, scale, out.mutable_data(), ld, scratch.as<float>()};
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
        table(isa).sign_index({head_, sign_, begin, end});
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
        const SignCachedAttentionArgs a{
            {q.data(), ld, tokens, heads, position, head_, scale, out.mutable_data(), ld, scratch.as<float>()},
            sign_,
            keep,
            window,
            kept.mutable_data()};
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

std::unique_ptr<Tokens> quantize_tokens(const py::array& x_any, const std::string& isa) {
    auto x = typed<float>(x_any, 2, "x");
    auto tokens = std::make_unique<Tokens>(x.shape(0), x.shape(1));
    table(isa).quantize_tokens({x.data(), x.shape(1), tokens->rows});
    return tokens;
}

// Tokens from integers, for products over the whole range of values.
std::unique_ptr<Tokens> tokens_from_int8(const py::array& q_any) {
    auto q = typed<int8_t>(q_any, 2, "q");
    auto tokens = std::make_unique<Tokens>(q.shape(0), q.shape(1));
    const TokenRows& rows = tokens->rows;
    std::memset(rows.sums, 0, tokens->sums.size());
    for (int64_t t = 0; t < rows.rows; ++t) {
        rows.scales[t] = 1.0f;
        for (int64_t i = 0; i < rows.ld; ++i) {
            const int value = i < rows.k ? q.at(t, i) : 0;
            rows.q[t * rows.ld + i] = static_cast<int8_t>(value);
            rows.u[t * rows.ld + i] = static_cast<uint8_t>(value + 128);
            rows.sums[t * (rows.ld / kGroupWeights) + i / kGroupWeights] += value;
        }
    }
    return tokens;
}

py::tuple unpack(const Tokens& tokens) {
    const TokenRows& rows = tokens.rows;
    Array<int8_t> q({static_cast<int64_t>(rows.rows), rows.ld});
    Array<uint8_t> u({static_cast<int64_t>(rows.rows), rows.ld});
    Array<int32_t> sums({static_cast<int64_t>(rows.rows), rows.ld / kGroupWeights});
    Array<float> scales(rows.rows);
    std::memcpy(q.mutable_data(), rows.q, tokens.q.size());
    std::memcpy(u.mutable_data(), rows.u, tokens.u.size());
    std::memcpy(sums.mutable_data(), rows.sums, tokens.sums.size());
    std::memcpy(scales.mutable_data(), rows.scales, sizeof(float) * rows.rows);
    return py::make_tuple(q, u, sums, scales);
}

}  // namespace

void bind_decoder_kernels(py::module_& module) {
    module.def("rms_norm", &rms_norm, py::arg("x"), py::arg("gamma"), py::arg("eps"), py::arg("isa") = "");
    module.def("rope", &rope, py::arg("x"), py::arg("cos"), py::arg("sin"), py::arg("isa") = "",
               "x [rows, heads, head_dim] turned by cos, sin [rows, head_dim / 2].");
    module.def("gated", &gated, py::arg("gate"), py::arg("up"), py::arg("act") = "silu", py::arg("isa") = "");
    module.def("hadamard", &hadamard, py::arg("x"), py::arg("size"), py::arg("isa") = "");
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
    py::class_<Tokens>(module, "Tokens", "Activations quantised per token, in rows, for the kernels of few tokens.")
        .def("unpack", &unpack, "(q int8, u uint8 [rows, round_up(k, 64)], sums int32 [rows, .. / 32], scales)");
    module.def("quantize_tokens", &quantize_tokens, py::arg("x"), py::arg("isa") = "");
    module.def("tokens_from_int8", &tokens_from_int8, py::arg("q"), "Tokens with given integers and scales of 1.");
}

}  // namespace approxrt
