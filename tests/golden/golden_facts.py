"""Turn artifacts, reports and arrays into facts that can be written down and compared: digests and rounded numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def of_json(data: Any) -> str:
    return digest(json.dumps(data, sort_keys=True).encode())


def of_arrays(tensors: Mapping[str, Any]) -> str:
    """One hash of names, dtypes, shapes and bytes."""
    import numpy as np

    whole = hashlib.sha256()
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        whole.update(f"{name} {array.dtype} {array.shape};".encode() + array.tobytes())
    return whole.hexdigest()[:16]


def of_artifact(folder: Path) -> dict[str, Any]:
    """Spec and tensors apart, with a sketch that a reader of a difference can use."""
    from approxrt.artifact.reader import read_artifact

    artifact = read_artifact(folder)
    spec = artifact.any_spec
    return {
        "spec": of_json(spec.to_json()),
        "tensors": of_arrays(artifact.tensors),
        "layers": [[layer.num_heads, layer.intermediate_size] for layer in spec.layers],
        "kinds": of_json({name: linear.kind for name, linear in spec.linears()}),
    }


def rounded(data: Any) -> Any:
    """Floats to six digits; paths to their last part."""
    if isinstance(data, float):
        return float(f"{data:.6g}")
    if isinstance(data, Mapping):
        return {str(key): rounded(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [rounded(value) for value in data]
    return Path(data).name if isinstance(data, str) and data.startswith("/") else data


def of_compression(out: Path, report: Any) -> dict[str, Any]:
    """The report less its time, and every candidate's artifact."""
    data = report.to_json()
    del data["seconds"]
    for candidate in (data["chosen"], *data["pareto"]):
        candidate["about"].get("practice", {}).pop("seconds", None)  # how often the clock was looked at
    work = out.with_name(out.name + ".work")
    found = sorted((p for p in work.glob("candidate-*") if p.is_dir()), key=lambda p: int(p.name.split("-")[1]))
    return {"report": rounded(data), "candidates": {p.name: of_artifact(p) for p in found}, "out": of_artifact(out)}
