// Sign-matching attention for tests and benchmarks.
#include "sign_planes.h"
#include "panels.h"

namespace approxrt {
namespace {

py::tuple sign_attention(const py::array& q_any, const py::array& k_any, const py::array& v_any, float scale,
                         int32_t keep, const std::string& isa, const py::object& always_any, bool causal,
                         int32_t offset, int32_t window, const py::object& planes_any, bool rest) {
    auto q = typed<float>(q_any, 2, "q"), k = typed<float>(k_any, 2, "k"), v = typed<float>(v_any, 2, "v");
    const auto queries = static_cast<int32_t>(q.shape(0));
    const auto n = static_cast<int32_t>(k.shape(0)), d = static_cast<int32_t>(k.shape(1));
    expect(n > 0 && d > 0 && q.shape(1) == d && v.shape(0) == n && v.shape(1) == d, "shapes of q, k, v do not fit");
    expect(d <= kMostSignDim, "sign attention has heads of at most " + std::to_string(kMostSignDim) + " elements");
    expect(keep > 0 && window > 0, "keep and window must be positive");
    expect(0 <= offset && queries <= n - offset,
           "each query needs a key of its own: offset + queries must be at most n");
    expect(!rest || !causal || (queries == 1 && offset == n - 1),
           "the rest has a mean for all queries alike: not causal, or the last position alone");
    Array<uint64_t> always, planes;
    if (!always_any.is_none()) {
        always = typed<uint64_t>(always_any, 1, "always");
        expect(always.shape(0) == sign_words(n), "always needs a bit a key, in whole blocks of 512");
        for (int64_t w = 0; w < sign_words(n); ++w) {
            const int64_t left = n - 64 * w;
            const uint64_t behind = left >= 64 ? 0 : left > 0 ? ~0ull << left : ~0ull;
            expect(!(always.at(w) & behind), "always has bits behind the last key");
        }
    }
    if (!planes_any.is_none()) {
        planes = typed<uint64_t>(planes_any, 1, "planes");
        expect(planes.shape(0) == sign_plane_words(n, d), "planes do not fit the keys");
    }
    Array<float> out({queries, d});
    Array<uint64_t> kept({static_cast<int64_t>(queries), sign_words(n)});
    AlignedBuffer scratch(sizeof(float) * sign_attention_scratch_floats(n, d));
    SignAttentionArgs s{};
    s.a = {.q = q.data(),
           .k = k.data(),
           .v = v.data(),
           .ldq = d,
           .q_strip = 16,
           .ld = d,
           .strip = 16,
           .n = n,
           .head_dim = d,
           .query_begin = 0,
           .query_end = queries,
           .scale = scale,
           .out = out.mutable_data(),
           .ldo = d,
           .scratch = scratch.as<float>()};
    s.keep = keep;
    s.always = always_any.is_none() ? nullptr : always.data();
    s.causal = causal;
    s.offset = offset;
    s.window = window;
    s.rest = rest;
    s.planes = planes_any.is_none() ? nullptr : planes.data();
    s.kept = kept.mutable_data();
    {
        py::gil_scoped_release release;
        table(isa).sign_attention(s);
    }
    return py::make_tuple(out, kept);
}

Array<uint64_t> sign_planes(const py::array& keys_any) {
    auto keys = typed<float>(keys_any, 2, "keys");
    const int64_t n = keys.shape(0), d = keys.shape(1);
    expect(n > 0 && 0 < d && d <= kMostSignDim, "keys have no rows or too many columns");
    Array<uint64_t> planes({sign_plane_words(n, d)});
    std::memset(planes.mutable_data(), 0, sizeof(uint64_t) * planes.size());
    for (int64_t j = 0; j < n; ++j) write_signs(keys.data(j, 0), static_cast<int32_t>(d), j, planes.mutable_data());
    return planes;
}

}  // namespace

void bind_sign_attention(py::module_& module) {
    module.def("sign_attention", &sign_attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("scale"),
               py::arg("keep"), py::arg("isa") = "", py::arg("always") = py::none(), py::arg("causal") = false,
               py::arg("offset") = 0, py::arg("window") = 16, py::arg("planes") = py::none(), py::arg("rest") = false,
               "(out f32[queries, d], kept u64[queries, words]: bits over keys).");
    module.def("sign_planes", &sign_planes, py::arg("keys"),
               "Signs of f32[n, d] as sign_attention reads them, written a key at a time as beside a cache.");
}

}  // namespace approxrt
