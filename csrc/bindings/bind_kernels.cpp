// Single kernels for tests and benchmarks: one call, one kernel, at a level of the caller's choice.
#include <algorithm>
#include <cstring>
#include <utility>

#include "group_arrays.h"
#include "panels.h"

namespace approxrt {

void bind_decoder_kernels(py::module_& kernels);
void bind_groups(py::module_& kernels);
void bind_preview(py::module_& kernels);
void bind_int4(py::module_& kernels);
void bind_sign_attention(py::module_& kernels);
void bind_schur_complement(py::module_& kernels);

namespace {

Panels quantize(const py::array& x_any, const std::string& isa, bool bytes) {
    auto x = typed<float>(x_any, 2, "x");
    const KernelTable& t = table(isa);
    Panels p(bytes ? t.int4_layout : t.layout, x.shape(0), x.shape(1));
    (bytes ? t.quantize_rows_u8
           : t.quantize_rows)({x.data(), p.k, p.rows, p.k, p.data.as<void>(), p.scales.as<float>()});
    return p;
}

// Panels from integers, for products over the whole range of values.
Panels panels_from_int8(const py::array& q_any, const std::string& isa, bool bytes) {
    auto q = typed<int8_t>(q_any, 2, "q");
    const KernelTable& t = table(isa);
    Panels p(bytes ? t.int4_layout : t.layout, q.shape(0), q.shape(1));
    std::memset(p.data.as<char>(), 0, p.data.size());
    std::fill_n(p.scales.as<float>(), p.rows, 1.0f);
    for (int32_t i = 0; i < round_up(p.rows, p.layout.mr); ++i) {
        for (int32_t j = 0; j < round_up(p.k, kTileK); ++j) {
            const int value = (i < p.rows && j < p.k ? q.at(i, j) : 0) + p.layout.bias;
            if (p.layout.element_size == 1) {
                *reinterpret_cast<uint8_t*>(p.at(i, j)) = static_cast<uint8_t>(value);
            } else {
                *reinterpret_cast<int16_t*>(p.at(i, j)) = static_cast<int16_t>(value);
            }
        }
    }
    return p;
}

py::tuple unpack(const Panels& p) {
    Array<int8_t> q({p.rows, p.k});
    Array<float> scales(p.rows);
    std::memcpy(scales.mutable_data(), p.scales.as<float>(), sizeof(float) * p.rows);
    for (int32_t i = 0; i < p.rows; ++i)
        for (int32_t j = 0; j < p.k; ++j) {
            const char* at = p.at(i, j);
            const int value = p.layout.element_size == 1 ? *reinterpret_cast<const uint8_t*>(at)
                                                         : *reinterpret_cast<const int16_t*>(at);
            q.mutable_at(i, j) = static_cast<int8_t>(value - p.layout.bias);
        }
    return py::make_tuple(q, scales);
}

struct Int8Linear {
    const KernelTable* kernels;
    Int8Weights weights;

    void run(const Panels& p, float* y, int32_t* accumulators, const float* residual, Act act) const {
        const PackedInt8& w = weights.packed();
        p.check(kernels->layout, w.k);
        const int64_t padded = static_cast<int64_t>(w.strips) * kTileN;
        GemmInt8Args a{
            p.data.as<void>(), p.scales.as<float>(), p.rows, &w, 0, w.strips, y, padded, kTileN, residual, padded, act,
            accumulators};
        py::gil_scoped_release release;
        kernels->gemm_int8(a);
    }
};

py::tuple int8_gemv(const Int8Linear& self, const Tokens& tokens) {
    const PackedInt8& w = self.weights.packed();
    tokens.check(w.k);
    expect(self.kernels->layout.element_size == 1, "gemv_int8 reads the byte order of scalar and VNNI weights");
    const int64_t padded = static_cast<int64_t>(w.strips) * kTileN, rows = tokens.rows.rows;
    Array<float> y({rows, padded});
    Array<int32_t> accumulators({rows, padded});
    const GemvInt8Args a{{nullptr, tokens.rows.scales, tokens.rows.rows, &w, 0, w.strips, y.mutable_data(), padded,
                          kTileN, nullptr, 0, Act::kIdentity, accumulators.mutable_data()},
                         &tokens.rows,
                         self.kernels->layout.mr};
    {
        py::gil_scoped_release release;
        self.kernels->gemv_int8(a);
    }
    return py::make_tuple(y, accumulators);
}

Int8Linear dense_linear(const py::array& q_any, const py::array& scale_any, const py::array& bias_any,
                        const std::string& isa) {
    auto q = typed<int8_t>(q_any, 2, "q");
    auto scale = typed<float>(scale_any, 1, "scale"), bias = typed<float>(bias_any, 1, "bias");
    const auto n = static_cast<int32_t>(q.shape(0)), k = static_cast<int32_t>(q.shape(1));
    expect(scale.shape(0) == n && bias.shape(0) == n, "scale and bias need one value an output");
    return {&table(isa), Int8Weights::from_dense(table(isa), n, k, q.data(), scale.data(), bias.data())};
}

Int8Linear bsr_linear(int32_t n, int32_t k, const py::array& indptr_any, const py::array& indices_any,
                      const py::array& tiles_any, const py::array& scale_any, const py::array& bias_any,
                      const std::string& isa) {
    auto indptr = typed<int32_t>(indptr_any, 1, "indptr");
    auto indices = typed<uint16_t>(indices_any, 1, "indices");
    auto tiles = typed<int8_t>(tiles_any, 3, "tiles");
    auto scale = typed<float>(scale_any, 1, "scale"), bias = typed<float>(bias_any, 1, "bias");
    const int64_t strips = round_up(n, kTileN) / kTileN, groups = round_up(k, kTileK) / kTileK;
    expect(indptr.shape(0) == strips + 1 && indptr.at(0) == 0, "indptr needs strips + 1 entries from 0");
    for (int64_t g = 0; g < strips; ++g) expect(indptr.at(g) <= indptr.at(g + 1), "indptr must not descend");
    const int64_t count = indptr.at(strips);
    expect(indices.shape(0) == count && tiles.shape(0) == count && tiles.shape(1) == kTileN && tiles.shape(2) == kTileK,
           "indices and tiles [nnz, 16, 4] need indptr's number of tiles");
    for (int64_t t = 0; t < count; ++t) expect(indices.at(t) < groups, "tile index out of range");
    expect(scale.shape(0) == n && bias.shape(0) == n, "scale and bias need one value an output");
    return {&table(isa), Int8Weights::from_bsr(table(isa), n, k, indptr.data(), indices.data(), tiles.data(),
                                               scale.data(), bias.data())};
}

Array<float> int8_forward(const Int8Linear& self, const Panels& p, const py::object& residual_any,
                          const std::string& act) {
    const PackedInt8& w = self.weights.packed();
    const int64_t padded = static_cast<int64_t>(w.strips) * kTileN;
    Array<float> y({static_cast<int64_t>(p.rows), padded});
    const float* residual = nullptr;
    Array<float> held;
    if (!residual_any.is_none()) {
        held = typed<float>(residual_any, 2, "residual");
        expect(held.shape(0) == p.rows && held.shape(1) == padded, "residual must be [rows, round_up(n, 16)]");
        residual = held.data();
    }
    self.run(p, y.mutable_data(), nullptr, residual, parse_act(act));
    return y;
}

Array<int32_t> int8_accumulate(const Int8Linear& self, const Panels& p) {
    const int64_t padded = static_cast<int64_t>(self.weights.packed().strips) * kTileN;
    Array<int32_t> accumulators({static_cast<int64_t>(p.rows), padded});
    AlignedBuffer y(sizeof(float) * p.rows * padded);
    self.run(p, y.as<float>(), accumulators.mutable_data(), nullptr, Act::kIdentity);
    return accumulators;
}

// float32 weights packed once, for products timed without the packing.
struct F32Linear {
    F32Weights weights;
    int32_t k;

    F32Linear(const py::array& w_any, const py::array& bias_any) : F32Linear(checked(w_any, bias_any)) {}

    Array<float> forward(const py::array& x_any, const std::string& act, const std::string& isa) const {
        auto x = typed<float>(x_any, 2, "x");
        expect(x.shape(1) == k, "shapes of x, w and bias do not fit");
        const auto rows = static_cast<int32_t>(x.shape(0));
        const PackedF32& p = weights.packed();
        const int64_t padded = static_cast<int64_t>(p.strips) * kTileN;
        Array<float> y({static_cast<int64_t>(rows), padded});
        table(isa).gemm_f32(
            {x.data(), k, rows, &p, 0, p.strips, y.mutable_data(), padded, kTileN, nullptr, 0, parse_act(act)});
        return y;
    }

  private:
    using Checked = std::pair<Array<float>, Array<float>>;

    static Checked checked(const py::array& w_any, const py::array& bias_any) {
        auto w = typed<float>(w_any, 2, "w"), bias = typed<float>(bias_any, 1, "bias");
        expect(bias.shape(0) == w.shape(0), "shapes of x, w and bias do not fit");
        return {w, bias};
    }

    explicit F32Linear(const Checked& c)
        : weights(static_cast<int32_t>(c.first.shape(0)), static_cast<int32_t>(c.first.shape(1)), c.first.data(),
                  c.second.data()),
          k(static_cast<int32_t>(c.first.shape(1))) {}
};

Array<float> gemm_f32(const py::array& x, const py::array& w, const py::array& bias, const std::string& act,
                      const std::string& isa) {
    return F32Linear(w, bias).forward(x, act, isa);
}

Array<float> layer_norm(const py::array& x_any, const py::array& gamma_any, const py::array& beta_any, float eps,
                        const std::string& isa) {
    auto x = typed<float>(x_any, 2, "x"), gamma = typed<float>(gamma_any, 1, "gamma"),
         beta = typed<float>(beta_any, 1, "beta");
    const auto rows = static_cast<int32_t>(x.shape(0)), width = static_cast<int32_t>(x.shape(1));
    expect(gamma.shape(0) == width && beta.shape(0) == width, "gamma and beta need one value a column");
    Array<float> y({rows, width});
    table(isa).layer_norm({x.data(), width, rows, width, gamma.data(), beta.data(), eps, y.mutable_data(), width});
    return y;
}

Array<float> softmax(const py::array& x_any, float scale, const std::string& isa, bool normalise) {
    auto x = typed<float>(x_any, 2, "x");
    const auto rows = static_cast<int32_t>(x.shape(0)), n = static_cast<int32_t>(x.shape(1));
    expect(n > 0, "x has no columns");
    Array<float> y({rows, n}), inv(rows);
    std::memcpy(y.mutable_data(), x.data(), sizeof(float) * x.size());
    table(isa).softmax({y.mutable_data(), n, rows, n, scale, inv.mutable_data()});
    for (int32_t i = 0; i < rows && normalise; ++i)
        for (int32_t j = 0; j < n; ++j) y.mutable_at(i, j) *= inv.at(i);
    return y;
}

Array<float> activation(const py::array& x_any, const std::string& act, const std::string& isa) {
    auto x = typed<float>(x_any, 1, "x");
    Array<float> y(x.shape(0));
    std::memcpy(y.mutable_data(), x.data(), sizeof(float) * x.size());
    table(isa).activation({y.mutable_data(), x.shape(0), parse_act(act)});
    return y;
}

Array<float> attention(const py::array& q_any, const py::array& k_any, const py::array& v_any, float scale,
                       const std::string& isa, int32_t query_begin, int32_t query_end, bool int16) {
    auto q = typed<float>(q_any, 2, "q"), k = typed<float>(k_any, 2, "k"), v = typed<float>(v_any, 2, "v");
    const auto queries = static_cast<int32_t>(q.shape(0));
    const auto n = static_cast<int32_t>(k.shape(0)), d = static_cast<int32_t>(k.shape(1));
    expect(n > 0 && d > 0 && q.shape(1) == d && v.shape(0) == n && v.shape(1) == d, "shapes of q, k, v do not fit");
    if (query_end < 0) query_end = queries;
    expect(0 <= query_begin && query_begin <= query_end && query_end <= queries, "query range out of range");
    Array<float> out({queries, d});
    std::memset(out.mutable_data(), 0, sizeof(float) * out.size());
    AlignedBuffer scratch(sizeof(float) * attention_scratch_floats(n, d));
    AttentionArgs a{q.data(),           k.data(), v.data(),           d, 16, d, 16, n, d, query_begin, query_end, scale,
                    out.mutable_data(), d,        scratch.as<float>()};
    {
        py::gil_scoped_release release;
        (int16 ? table(isa).attention_int16 : table(isa).attention)(a);
    }
    return out;
}

Array<float> embedding(const py::array& word, const py::object& word_scale, const py::array& position_any,
                       const py::object& token_type, const py::array& ids_any, const py::array& positions_any,
                       const py::object& types, const std::string& isa, const py::object& group_scale,
                       const py::object& half_scale, const py::object& half_offset, const py::object& q2,
                       const py::object& wide_any) {
    EmbeddingArgs a{};
    auto position = typed<float>(position_any, 2, "position");
    a.width = static_cast<int32_t>(position.shape(1));
    int64_t columns = a.width, vocab = word.shape(0);
    const int64_t group_columns = round_up(a.width, kGroupWeights) / kGroupWeights;
    Array<float> word_f, scale, type_table;
    Array<int8_t> word_q;
    Array<uint8_t> word_q4, groups, quarters;
    Array<int32_t> type_ids, wide;
    if (!half_scale.is_none()) {
        const int64_t rows = word.shape(0);
        a.word_half_scale = halves(half_scale, rows, a.width, "half_scale");
        if (!q2.is_none()) {
            word_q4 = typed<uint8_t>(word, 2, "word");
            groups = typed<uint8_t>(q2, 2, "q2");
            expect(groups.shape(0) == rows && groups.shape(1) == (a.width + 3) / 4, "q2 needs a byte for 4 columns");
            a.word_q4 = word_q4.data();
            a.word_q2 = groups.data();
            columns = (columns + 1) / 2;
        } else if (half_offset.is_none()) {
            word_q = typed<int8_t>(word, 2, "word");
            a.word_q = word_q.data();
        } else {
            word_q4 = typed<uint8_t>(word, 2, "word");
            a.word_q4 = word_q4.data();
            a.word_half_offset = halves(half_offset, rows, a.width, "half_offset");
            columns = (columns + 1) / 2;
        }
    } else if (word_scale.is_none()) {
        word_f = typed<float>(word, 2, "word");
        a.word = word_f.data();
    } else {
        scale = typed<float>(word_scale, 1, "word_scale");
        a.word_scale = scale.data();
        if (!wide_any.is_none()) {
            wide = typed<int32_t>(wide_any, 1, "wide");
            quarters = typed<uint8_t>(q2, 2, "q2");
            expect(word.shape(0) == wide.shape(0), "wide needs an id for each row of word");
            vocab += quarters.shape(0);
            expect(quarters.shape(1) == (a.width + 3) / 4, "q2 needs a byte for 4 columns");
            a.word_wide = ascending(wide, vocab, "wide");
            a.wide = static_cast<int32_t>(wide.shape(0));
            a.word_q2 = quarters.data();
        }
        expect(scale.shape(0) == vocab, "word_scale needs one value a row");
        if (group_scale.is_none()) {
            word_q = typed<int8_t>(word, 2, "word");
            a.word_q = word_q.data();
        } else {
            word_q4 = typed<uint8_t>(word, 2, "word");
            groups = typed<uint8_t>(group_scale, 2, "group_scale");
            columns = (columns + 1) / 2;
            expect(groups.shape(0) == vocab && groups.shape(1) == group_columns,
                   "group_scale needs one value for 32 columns of a row");
            a.word_q4 = word_q4.data();
            a.word_group_scale = groups.data();
        }
    }
    auto ids = typed<int32_t>(ids_any, 1, "ids"), positions = typed<int32_t>(positions_any, 1, "positions");
    a.rows = static_cast<int32_t>(ids.shape(0));
    expect(word.shape(1) == columns && positions.shape(0) == a.rows, "shapes of tables and ids do not fit");
    for (int32_t i = 0; i < a.rows; ++i)
        expect(ids.at(i) >= 0 && ids.at(i) < vocab && positions.at(i) >= 0 && positions.at(i) < position.shape(0),
               "id or position out of range");
    if (!token_type.is_none()) {
        type_table = typed<float>(token_type, 2, "token_type");
        expect(type_table.shape(1) == a.width, "token_type has another width");
        a.token_type = type_table.data();
    }
    if (!types.is_none()) {
        type_ids = typed<int32_t>(types, 1, "types");
        expect(type_ids.shape(0) == a.rows, "types needs one value a token");
        for (int32_t i = 0; i < a.rows; ++i)
            expect(type_ids.at(i) >= 0 && (!a.token_type || type_ids.at(i) < type_table.shape(0)), "type out of range");
        a.types = type_ids.data();
    }
    a.position = position.data();
    a.ids = ids.data();
    a.positions = positions.data();
    Array<float> out({a.rows, a.width});
    a.out = out.mutable_data();
    a.ldo = a.width;
    table(isa).embedding(a);
    return out;
}

}  // namespace

void bind_kernels(py::module_& parent) {
    auto module = parent.def_submodule("kernels", "Single kernels, for tests and benchmarks.");
    py::class_<Panels>(module, "Panels", "Activations quantised per token, in a kernel family's layout.")
        .def("unpack", &unpack, "(q int8 [rows, k], scales float32 [rows])")
        .def_readonly("rows", &Panels::rows)
        .def_readonly("k", &Panels::k);
    module.def(
        "quantize_rows", [](const py::array& x, const std::string& isa) { return quantize(x, isa, false); },
        py::arg("x"), py::arg("isa") = "", "Quantise float32 [rows, k] per row, for Int8Linear.");
    module.def(
        "quantize_rows_u8", [](const py::array& x, const std::string& isa) { return quantize(x, isa, true); },
        py::arg("x"), py::arg("isa") = "", "The same for Int4Linear.");
    module.def("panels_from_int8", &panels_from_int8, py::arg("q"), py::arg("isa") = "", py::arg("u8") = false,
               "Panels with given integers and scales of 1, for Int8Linear or (u8) Int4Linear.");
    py::class_<Int8Linear>(module, "Int8Linear", "Packed int8 weights, dense or block-sparse.")
        .def_static("dense", &dense_linear, py::arg("q"), py::arg("scale"), py::arg("bias"), py::arg("isa") = "")
        .def_static("bsr", &bsr_linear, py::arg("n"), py::arg("k"), py::arg("indptr"), py::arg("indices"),
                    py::arg("tiles"), py::arg("scale"), py::arg("bias"), py::arg("isa") = "")
        .def("accumulate", &int8_accumulate, py::arg("panels"), "Corrected int32 sums [rows, round_up(n, 16)].")
        .def("forward", &int8_forward, py::arg("panels"), py::arg("residual") = py::none(), py::arg("act") = "identity",
             "float32 [rows, round_up(n, 16)].")
        .def("gemv", &int8_gemv, py::arg("tokens"),
             "(float32, int32 sums), both [rows, round_up(n, 16)], by the kernel of few tokens.")
        .def_property(
            "token_lanes", [](const Int8Linear& l) { return l.weights.packed().token_lanes; },
            [](Int8Linear& l, bool on) {
                expect(!on || (l.kernels->isa == Isa::kAvx512Vnni && l.weights.packed().offsets),
                       "only sparse weights of level avx512vnni can be multiplied with tokens in lanes");
                l.weights.set_token_lanes(on);
            },
            "Whether products have tokens, not outputs, in a register's lanes: what suits the CPU, until it is set.")
        .def_property_readonly("tiles",
                               [](const Int8Linear& l) { return l.weights.packed().indptr[l.weights.packed().strips]; })
        .def_property_readonly("bytes", [](const Int8Linear& l) { return l.weights.bytes(); });
    bind_decoder_kernels(module);
    bind_int4(module);
    bind_groups(module);
    bind_preview(module);
    bind_sign_attention(module);
    bind_schur_complement(module);
    py::class_<F32Linear>(module, "F32Linear", "Packed float32 weights.")
        .def(py::init<const py::array&, const py::array&>(), py::arg("w"), py::arg("bias"))
        .def("forward", &F32Linear::forward, py::arg("x"), py::arg("act") = "identity", py::arg("isa") = "",
             "float32 [rows, round_up(n, 16)].");
    module.def("gemm_f32", &gemm_f32, py::arg("x"), py::arg("w"), py::arg("bias"), py::arg("act") = "identity",
               py::arg("isa") = "");
    module.def("layer_norm", &layer_norm, py::arg("x"), py::arg("gamma"), py::arg("beta"), py::arg("eps"),
               py::arg("isa") = "");
    module.def("softmax", &softmax, py::arg("x"), py::arg("scale") = 1.0f, py::arg("isa") = "",
               py::arg("normalise") = true,
               "Softmax of rows; without `normalise` as the kernel leaves it: not yet divided by the row's sum.");
    module.def("activation", &activation, py::arg("x"), py::arg("act"), py::arg("isa") = "");
    module.def("attention", &attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("scale"), py::arg("isa") = "",
               py::arg("query_begin") = 0, py::arg("query_end") = -1, py::arg("int16") = false);
    module.def("embedding", &embedding, py::arg("word"), py::arg("word_scale"), py::arg("position"),
               py::arg("token_type"), py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("isa") = "",
               py::arg("group_scale") = py::none(), py::arg("half_scale") = py::none(),
               py::arg("half_offset") = py::none(), py::arg("q2") = py::none(), py::arg("wide") = py::none(),
               "word: float32, int8 with word_scale, or uint8 nibbles with word_scale and group_scale; with wide i32, "
               "the nibbles of the words that it lists, and q2 all other words in two bits.");
    module.def(
        "peak_int8",
        [](int64_t iterations, const std::string& isa) {
            py::gil_scoped_release release;
            return table(isa).peak_int8(iterations);
        },
        py::arg("iterations"), py::arg("isa") = "",
        "Products executed by that many rounds of register-only int8 work.");
    module.def(
        "peak_f32",
        [](int64_t iterations, const std::string& isa) {
            py::gil_scoped_release release;
            return table(isa).peak_f32(iterations);
        },
        py::arg("iterations"), py::arg("isa") = "", "The same for float32.");
}

}  // namespace approxrt
