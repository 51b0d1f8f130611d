// Int4Weights from numpy arrays: shapes and indices are checked here, values by the packer. What packs them is
// returned: it holds pointers only and needs no Python.
#pragma once

#include <functional>
#include <string>

#include "pack_int4.h"
#include "arrays.h"

namespace approxrt {

// q4 u8 [n, ceil(k / 2)], group_scale u8 [n, ceil(k / 32)], scale and bias f32 [n].
inline std::function<Int4Weights()> int4_from_dense(const KernelTable& kernels, int32_t n, int32_t k,
                                                    const py::handle& q4_any, const py::handle& group_scale_any,
                                                    const float* scale, const float* bias, const std::string& name) {
    auto q4 = typed<uint8_t>(q4_any, 2, name + "q4"), m = typed<uint8_t>(group_scale_any, 2, name + "group_scale");
    const int64_t bytes = (static_cast<int64_t>(k) + 1) / 2;
    const int64_t groups = Int4Weights::groups_of(round_up(k, kTileK) / kTileK);
    expect(q4.shape(0) == n && q4.shape(1) == bytes,
           name + "q4 must be [" + std::to_string(n) + ", " + std::to_string(bytes) + "]");
    expect(m.shape(0) == n && m.shape(1) == groups,
           name + "group_scale must be [" + std::to_string(n) + ", " + std::to_string(groups) + "]");
    const uint8_t *nibbles = q4.data(), *scales = m.data();
    return [=, &kernels] { return Int4Weights::from_dense(kernels, n, k, nibbles, scales, scale, bias); };
}

// indptr i32 [strips + 1], indices u16 [nnz], tiles4 u8 [nnz, 16, 2], group_scale u8 [groups, 16].
inline std::function<Int4Weights()> int4_from_bsr(const KernelTable& kernels, int32_t n, int32_t k,
                                                  const py::handle& indptr_any, const py::handle& indices_any,
                                                  const py::handle& tiles_any, const py::handle& group_scale_any,
                                                  const float* scale, const float* bias, const std::string& name) {
    auto indptr = typed<int32_t>(indptr_any, 1, name + "indptr");
    auto indices = typed<uint16_t>(indices_any, 1, name + "indices");
    auto tiles = typed<uint8_t>(tiles_any, 3, name + "tiles4");
    auto m = typed<uint8_t>(group_scale_any, 2, name + "group_scale");
    const int64_t strips = round_up(n, kTileN) / kTileN, columns = round_up(k, kTileK) / kTileK;
    expect(indptr.shape(0) == strips + 1 && indptr.at(0) == 0, name + "indptr needs strips + 1 entries from 0");
    int64_t groups = 0;
    for (int64_t g = 0; g < strips; ++g) {
        const int64_t count = static_cast<int64_t>(indptr.at(g + 1)) - indptr.at(g);
        expect(count >= 0, name + "indptr must not descend");
        groups += Int4Weights::groups_of(count);
    }
    const int64_t count = indptr.at(strips);
    expect(indices.shape(0) == count && tiles.shape(0) == count && tiles.shape(1) == kTileN &&
               tiles.shape(2) == kTileK / 2,
           name + "indices and tiles4 [nnz, 16, 2] need indptr's number of tiles");
    expect(m.shape(0) == groups && m.shape(1) == kTileN,
           name + "group_scale must be [" + std::to_string(groups) + ", 16]: a row for every 8 tiles of a strip");
    for (int64_t t = 0; t < count; ++t) expect(indices.at(t) < columns, name + "indices: a tile index is out of range");
    const int32_t* starts = indptr.data();
    const uint16_t* columns_of = indices.data();
    const uint8_t *nibbles = tiles.data(), *scales = m.data();
    return [=, &kernels] {
        return Int4Weights::from_bsr(kernels, n, k, starts, columns_of, nibbles, scales, scale, bias);
    };
}

}  // namespace approxrt
