// GroupWeights from numpy arrays: shapes are checked here, values by the artifact's reader. What packs them is
// returned: it holds pointers only and needs no Python.
#pragma once

#include <functional>
#include <string>

#include "pack_groups.h"
#include "arrays.h"

namespace approxrt {

inline py::array halves_array(const py::handle& object) {
    return py::isinstance<py::array>(object) ? py::reinterpret_borrow<py::array>(object) : py::array();
}

// The bits of float16 [n, ceil(k / 32)].
inline const uint16_t* halves(const py::handle& object, int64_t n, int64_t k, const std::string& name) {
    const auto array = halves_array(object);
    const int64_t groups = GroupWeights::groups_of(k);
    const bool fits = array.ndim() == 2 && array.dtype().kind() == 'f' && array.itemsize() == 2 &&
                      (array.flags() & py::array::c_style) && array.shape(0) == n && array.shape(1) == groups;
    expect(fits, name + " must be C-contiguous float16 [" + std::to_string(n) + ", " + std::to_string(groups) + "]");
    return static_cast<const uint16_t*>(array.data());
}

// q4 u8 [n, ceil(k / 2)] with group_scale and group_offset, or q i8 [n, k] with group_scale; bias f32 [n].
inline std::function<GroupWeights()> group_nibbles(int32_t n, int32_t k, const py::handle& q4_any,
                                                   const py::handle& scale_any, const py::handle& offset_any,
                                                   const float* bias, const std::string& name) {
    const auto q4 = typed<uint8_t>(q4_any, 2, name + "q4");
    const int64_t bytes = (static_cast<int64_t>(k) + 1) / 2;
    expect(q4.shape(0) == n && q4.shape(1) == bytes,
           name + "q4 must be [" + std::to_string(n) + ", " + std::to_string(bytes) + "]");
    const uint8_t* nibbles = q4.data();
    const uint16_t *scale = halves(scale_any, n, k, name + "group_scale"),
                   *offset = halves(offset_any, n, k, name + "group_offset");
    return [=] { return GroupWeights::from_nibbles(n, k, nibbles, scale, offset, bias); };
}
// The same of six bits: q2 u8 [n, ceil(k / 4)], no offset.
inline std::function<GroupWeights()> group_sixes(int32_t n, int32_t k, const py::handle& q4_any,
                                                 const py::handle& q2_any, const py::handle& scale_any,
                                                 const float* bias, const std::string& name) {
    const auto q4 = typed<uint8_t>(q4_any, 2, name + "q4"), q2 = typed<uint8_t>(q2_any, 2, name + "q2");
    const int64_t halves_bytes = (static_cast<int64_t>(k) + 1) / 2, quarters = (static_cast<int64_t>(k) + 3) / 4;
    expect(q4.shape(0) == n && q4.shape(1) == halves_bytes && q2.shape(0) == n && q2.shape(1) == quarters,
           name + "q4 must be [" + std::to_string(n) + ", " + std::to_string(halves_bytes) + "] and q2 [" +
               std::to_string(n) + ", " + std::to_string(quarters) + "]");
    const uint8_t *low = q4.data(), *high = q2.data();
    const uint16_t* scale = halves(scale_any, n, k, name + "group_scale");
    return [=] { return GroupWeights::from_sixes(n, k, low, high, scale, bias); };
}
inline std::function<GroupWeights()> group_bytes(int32_t n, int32_t k, const py::handle& q_any,
                                                 const py::handle& scale_any, const float* bias,
                                                 const std::string& name) {
    const auto q = typed<int8_t>(q_any, 2, name + "q");
    expect(q.shape(0) == n && q.shape(1) == k,
           name + "q must be [" + std::to_string(n) + ", " + std::to_string(k) + "]");
    const int8_t* bytes = q.data();
    const uint16_t* scale = halves(scale_any, n, k, name + "group_scale");
    return [=] { return GroupWeights::from_bytes(n, k, bytes, scale, bias); };
}

}  // namespace approxrt
