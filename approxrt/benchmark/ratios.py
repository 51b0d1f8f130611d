"""Compute how many times faster ours is than the peers that matter, workload by workload of one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from approxrt.benchmark.results import Row

# Key in the document, heading in the table, and which peers it is about.
GROUPS: tuple[tuple[str, str, Callable[[str], bool]], ...] = (
    ("best", "best peer", lambda name: True),
    ("openvino_int8", "OpenVINO int8", lambda name: name == "openvino-int8"),
    ("best_int8", "best int8", lambda name: name.endswith("-int8")),
    ("best_f32", "best f32", lambda name: not name.endswith("-int8")),
    ("torch_eager", "torch eager", lambda name: name == "torch-eager"),
)


def ratios(rows: Sequence[Row], ours: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each workload and each of `ours`; a group whose peers were not measured is left out of it."""
    out = []
    for workload in dict.fromkeys(row.workload for row in rows):
        here = {row.engine: row for row in rows if row.workload == workload}
        peers = [row for name, row in here.items() if name not in ours]
        for name in ours:
            row = here[name]
            over = {}
            for key, _, belongs in GROUPS:
                group = [peer for peer in peers if belongs(peer.engine)]
                if group:
                    best = min(group, key=lambda peer: peer.median_ms)
                    over[key] = {"peer": best.engine, "ratio": best.median_ms / row.median_ms}
            entry: dict[str, Any] = {"workload": workload, "engine": name, "over": over}
            if row.limit_ms is not None:
                entry |= {"limit_ms": row.limit_ms, "share_of_limit": row.limit_ms / row.median_ms}
            out.append(entry)
    return out
