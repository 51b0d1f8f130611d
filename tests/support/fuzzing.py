"""What fuzz tests share: hostile changes of JSON and bytes, and the bounds that a reader must keep."""

from __future__ import annotations

import copy
import json
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

# `make test` has a minute for all of tests/fuzz; `make fuzz` sets more.
EXAMPLES = int(os.environ.get("APPROXRT_FUZZ_EXAMPLES", "300"))
# Shrinking what was found takes longer than finding it: CI wants the failure.
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
MAX_SECONDS = 1.0
MAX_MEGABYTES = 200

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 255, 2**31, 2**32 - 1, 2**63, 2**64, -(2**63), 10**400, -(10**400), 10**4000,
    0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, "", "a", "1", "nan", "NaN", "\ud800", "\x00", "x" * 5000, "s8", "bsr_s8",
    "f32", "../..", "/dev/zero", [], [[]], [None] * 300, list(range(500)), {}, {"": {}}, {"a": 1}, {"type": "BPE"},
)  # fmt: skip


def places(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all members of a JSON document, of long lists and objects the first few."""
    if isinstance(document, dict):
        members: list[tuple[Any, Any]] = list(document.items())[:60]
    elif isinstance(document, list):
        members = list(enumerate(document))[:8]
    else:
        return
    for key, value in members:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(document: Any, change: tuple[tuple[Any, ...], str, Any]) -> Any:
    """The document with the member at a path set, removed, doubled, or given a name that nobody knows."""
    path, what, value = change
    out = copy.deepcopy(document)
    at = out
    for key in path[:-1]:
        at = at[key] if isinstance(at, dict | list) and _has(at, key) else None
    if not isinstance(at, dict | list) or not _has(at, path[-1]):
        return out  # an earlier change took it away
    if what == "set":
        at[path[-1]] = value
    elif what == "remove":
        del at[path[-1]]
    elif isinstance(at, list):
        at.append(at[path[-1]])
    else:
        at[f"{path[-1]}2"] = at[path[-1]]
    return out


def _has(at: Any, key: Any) -> bool:
    return key in at if isinstance(at, dict) else isinstance(key, int) and key < len(at)


def documents(sound: Any) -> st.SearchStrategy[Any]:
    """JSON documents with one to three hostile changes."""
    change = st.tuples(
        st.sampled_from(list(places(sound))), st.sampled_from(("set", "set", "set", "remove", "double")),
        st.sampled_from(HOSTILE),
    )  # fmt: skip
    return st.lists(change, min_size=1, max_size=3).map(lambda changes: _all(sound, changes))


def _all(document: Any, changes: list[Any]) -> Any:
    for change in changes:
        document = changed(document, change)
    return document


def to_bytes(document: Any) -> bytes:
    """JSON with everything that Python can write: integers of any length, NaN, lone surrogates."""
    return json.dumps(document, default=str).encode("utf-8", "surrogatepass")


def damaged(data: bytes, front: int = 4000) -> st.SearchStrategy[bytes]:
    """The bytes with some overwritten, inserted, taken away or cut off; half of the changes are near the front."""
    spot = st.one_of(st.integers(0, min(front, len(data))), st.integers(0, len(data)))
    edit = st.tuples(spot, st.integers(0, 12), st.binary(max_size=12), st.booleans())

    def apply(edits: list[tuple[int, int, bytes, bool]]) -> bytes:
        out = data
        for at, gone, new, cut in edits:
            out = out[:at] + new + (b"" if cut and at > 16 else out[at + gone :])
        return out

    return st.lists(edit, min_size=1, max_size=3).map(apply)


@contextmanager
def bounded(allowed: type[Exception] | tuple[type[Exception], ...]) -> Iterator[list[Exception]]:
    """Swallow what a reader may raise, into the list; fail where it raises anything else, or takes too much."""
    raised: list[Exception] = []
    peak, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        yield raised
    except allowed as error:
        raised.append(error)
        assert len(str(error)) < 100_000, "no message is a book"
    seconds = time.process_time() - begin
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1e3
    assert seconds < MAX_SECONDS, f"took {seconds:.1f} s"
    assert grown < MAX_MEGABYTES, f"took {grown:.0f} MB"
