// A profile for Python: {passes, wall_ns, ops: [{op, calls, ns, macs}]}, operators that ran only.
#pragma once

#include "engine/common/profile.h"
#include "arrays.h"

namespace approxrt {

inline py::dict profile_dict(const Profile& profile) {
    py::list ops;
    for (int i = 0; i < kOps; ++i) {
        const OpTime& op = profile.ops[i];
        if (!op.calls) continue;
        py::dict entry;
        entry["op"] = kOpNames[i];
        entry["calls"] = op.calls;
        entry["ns"] = op.ns;
        entry["macs"] = op.macs;
        ops.append(entry);
    }
    py::dict result;
    result["passes"] = profile.passes;
    result["wall_ns"] = profile.wall_ns;
    result["ops"] = ops;
    return result;
}

}  // namespace approxrt
