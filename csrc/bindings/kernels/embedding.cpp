// Sums of rows of tables of every kind.
#include "bindings/group_arrays.h"
#include "panels.h"

namespace approxrt {
namespace {

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

void bind_embedding(py::module_& module) {
    module.def("embedding", &embedding, py::arg("word"), py::arg("word_scale"), py::arg("position"),
               py::arg("token_type"), py::arg("ids"), py::arg("positions"), py::arg("types"), py::arg("isa") = "",
               py::arg("group_scale") = py::none(), py::arg("half_scale") = py::none(),
               py::arg("half_offset") = py::none(), py::arg("q2") = py::none(), py::arg("wide") = py::none(),
               "word: float32, int8 with word_scale, or uint8 nibbles with word_scale and group_scale; with wide i32, "
               "the nibbles of the words that it lists, and q2 all other words in two bits.");
}

}  // namespace approxrt
