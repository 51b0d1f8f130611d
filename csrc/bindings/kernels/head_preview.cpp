// The kernels of a previewed head for tests and benchmarks, at a level of the caller's choice.
#include "bindings/group_arrays.h"
#include "panels.h"

namespace approxrt {
namespace {

py::tuple shortlist(const py::array& logits_any, float threshold, int32_t first, const std::string& isa) {
    auto logits = typed<float>(logits_any, 1, "logits");
    const auto count = static_cast<int32_t>(logits.shape(0));
    std::vector<int32_t> ids(static_cast<size_t>(count) + 1);
    float largest;
    int32_t found;
    table(isa).shortlist({.logits = logits.data(),
                          .count = count,
                          .threshold = threshold,
                          .first = first,
                          .largest = &largest,
                          .ids = ids.data(),
                          .found = &found});
    Array<int32_t> out(found);
    std::copy(ids.begin(), ids.begin() + found, out.mutable_data());
    return py::make_tuple(largest, out);
}

// Of one token x [k] and a table by rows; NaN for words that are not asked for.
Array<float> word_logits(const py::array& x_any, const py::array& q_any, const py::array& scale_any,
                         const py::array& ids_any, const std::string& isa) {
    auto x = typed<float>(x_any, 1, "x");
    auto q = typed<int8_t>(q_any, 2, "q");
    auto ids = typed<int32_t>(ids_any, 1, "ids");
    const int64_t words = q.shape(0), k = q.shape(1);
    expect(x.shape(0) == k && k > 0, "x must have the table's columns");
    const uint16_t* scale = halves(scale_any, words, k, "scale");
    for (int64_t i = 0; i < ids.shape(0); ++i)
        expect(ids.at(i) >= 0 && ids.at(i) < words, "an id is outside the table");
    const KernelTable& t = table(isa);
    AlignedBuffer panel(GroupPanels{1}.bytes(1, k));
    float act_scale;
    t.quantize_groups({.x = x.data(),
                       .ldx = k,
                       .rows = 1,
                       .k = static_cast<int32_t>(k),
                       .mr = 1,
                       .panels = panel.as<void>(),
                       .scales = &act_scale});
    Array<float> logits(words);
    std::fill_n(logits.mutable_data(), words, std::numeric_limits<float>::quiet_NaN());
    const WordLogitsArgs a{.q = q.data(),
                           .scale = scale,
                           .k = static_cast<int32_t>(k),
                           .panel = panel.as<void>(),
                           .act_scale = act_scale,
                           .ids = ids.data(),
                           .count = static_cast<int32_t>(ids.shape(0)),
                           .logits = logits.mutable_data()};
    py::gil_scoped_release release;
    t.word_logits(a);
    return logits;
}

}  // namespace

void bind_head_preview(py::module_& module) {
    module.def("shortlist", &shortlist, py::arg("logits"), py::arg("threshold"), py::arg("first") = 0,
               py::arg("isa") = "", "(the largest, int32 ids first + i of those that reach the threshold).");
    module.def("word_logits", &word_logits, py::arg("x"), py::arg("q"), py::arg("group_scale"), py::arg("ids"),
               py::arg("isa") = "", "float32 [vocab] of a g8 table; NaN but at `ids`.");
}

}  // namespace approxrt
