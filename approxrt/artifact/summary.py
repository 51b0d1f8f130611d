"""Summarise what an artifact is made of: bytes by part and kind, density, and which kernels do the multiplying.

MACs are multiply-accumulates a token of the encoder's linears (and the
embeddings' projection). The head runs once a text and attention's products
depend on the text's length: both are left out of the shares, and `removed`
names the blocks that multiply nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from approxrt.artifact.reader import Artifact
from approxrt.artifact.spec.decoder import AnySpec, DecoderLayerSpec, DecoderSpec
from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec
from approxrt.artifact.spec.formats import LINEAR_KINDS, TILE_K, TILE_N, TILE_PARTS, LinearSpec

_LINEAR_PARTS = (
    "weight",
    "q",
    "q4",
    "q2",
    "scale",
    "group_scale",
    "group_offset",
    "tiles",
    "tiles4",
    "indices",
    "indptr",
    "bias",
)


def summarize(artifact: Artifact) -> dict[str, Any]:
    """A JSON-ready description of a sound artifact."""
    spec, sizes, files = artifact.any_spec, artifact.tensor_bytes, dict(artifact.files)
    linears = [linear_summary(name, linear, artifact) for name, linear in spec.linears()]
    by_part = _bytes_by_part(sizes)
    return {
        "path": str(artifact.path),
        "architecture": spec.architecture,
        "task_type": spec.task_type,
        "inputs": spec.inputs,
        "labels": list(spec.labels),
        "layers": len(spec.steps) if isinstance(spec, ModelSpec) else len(spec.layers),
        "hidden_size": spec.hidden_size,
        "max_length": spec.max_length,
        "bytes": {"total": sum(files.values()), "weights": sum(by_part.values()), **by_part, "files": files},
        "bytes_by_kind": _bytes_by_kind(spec, linears, sizes),
        "density": _density([linear for linear in linears if linear["name"].startswith("layers.")]),
        "mac_share": mac_share(linears, isinstance(spec, DecoderSpec)),
        "layer_density": [
            _density([linear for linear in linears if linear["name"].startswith(f"layers.{i}.")])
            for i in range(len(spec.layers))
        ],
        "linears": linears,
        "removed": [block for block, _ in spec.removed_biases()],
        "sign_matching": _sign_matching(spec),
        "head_preview": _head_preview(spec),
        **({"layer_order": list(spec.layer_order)} if isinstance(spec, ModelSpec) and spec.layer_order else {}),
        "card": artifact.card,
    }


def _sign_matching(spec: AnySpec) -> list[dict[str, Any]]:
    """The layers whose attention matches signs: how many keys a query keeps, and in texts of how many tokens."""
    layers: tuple[LayerSpec | DecoderLayerSpec, ...] = spec.layers
    return [
        {"layer": i, "keep": layer.attention_keep, "sign_from": layer.sign_from, "rest": layer.attention_rest}
        for i, layer in enumerate(layers)
        if layer.attention_keep
    ]


def _head_preview(spec: AnySpec) -> dict[str, Any] | None:
    """Return how a decoder's head is previewed, where it is."""
    preview = spec.head_preview if isinstance(spec, DecoderSpec) else None
    return None if preview is None else dataclasses.asdict(preview)


def linear_summary(name: str, linear: LinearSpec, artifact: Artifact) -> dict[str, Any]:
    """Kind, shape, bytes, density and MACs a token of one linear; `density` is the share of tiles kept."""
    n, k = linear.out_features, linear.in_features
    size = sum(artifact.tensor_bytes.get(f"{name}.{part}", 0) for part in _LINEAR_PARTS)
    uses = _uses(name, artifact.any_spec)
    density, macs = 1.0, n * k * uses
    if linear.kind in TILE_PARTS:
        tiles = len(artifact.tensors[f"{name}.indices"])
        density = tiles / (-(-n // TILE_N) * -(-k // TILE_K))
        macs = tiles * TILE_N * TILE_K * uses
    return {
        "name": name,
        "kind": linear.kind,
        "out_features": n,
        "in_features": k,
        "density": density,
        "bytes": size,
        "macs": macs,
        "dense_macs": n * k * uses,
    }


def _uses(name: str, spec: AnySpec) -> int:
    """Return how often a pass runs a linear: a shared layer's once a step of its."""
    if not isinstance(spec, ModelSpec) or not spec.layer_order or not name.startswith("layers."):
        return 1
    return spec.layer_order.count(int(name.split(".")[1]))


def mac_share(linears: list[dict[str, Any]], decoder: bool = False) -> dict[str, float]:
    """Return, by kind of linear, its share of the dense model's MACs: the part of the work that its kernel takes over.

    All 0 when every block is removed.
    """
    # A decoder's head runs for every token; its matrix is counted where it has tensors of its own.
    work = [linear for linear in linears if decoder or not linear["name"].startswith("head.")]
    total = max(1, sum(linear["dense_macs"] for linear in work))
    return {kind: sum(x["dense_macs"] for x in work if x["kind"] == kind) / total for kind in LINEAR_KINDS}


def _density(linears: list[dict[str, Any]]) -> float:
    """Executed share of the dense MACs; at most 1 (padding of edge tiles is not counted against it), 0 of no linears.

    Removed blocks are in neither sum: an artifact does not know how large they were.
    """
    return min(1.0, sum(x["macs"] for x in linears) / max(1, sum(x["dense_macs"] for x in linears)))


def _bytes_by_part(sizes: Mapping[str, int]) -> dict[str, int]:
    parts = {"embeddings": 0, "layers": 0, "head": 0}
    for name, size in sizes.items():
        parts[name.split(".", 1)[0]] += size
    return {"embeddings": parts["embeddings"], "encoder": parts["layers"], "head": parts["head"]}


def _bytes_by_kind(spec: AnySpec, linears: list[dict[str, Any]], sizes: Mapping[str, int]) -> dict[str, int]:
    """Weights by the kind of the linear (or embedding) that they belong to; norms and tables count as f32."""
    kinds: dict[str, int] = {
        kind: sum(x["bytes"] for x in linears if x["kind"] == kind) for kind in (*LINEAR_KINDS, "s2")
    }
    words = sum(size for name, size in sizes.items() if name.startswith("embeddings.word."))
    kinds[spec.embedding_kind] += words
    rest = sum(sizes.values()) - sum(x["bytes"] for x in linears) - words
    kinds["f32"] += rest
    return kinds
