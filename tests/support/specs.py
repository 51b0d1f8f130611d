"""Small model specs with random tensors of every kind, for tests of artifacts and kernels."""

from __future__ import annotations

import numpy as np

from approxrt.artifact.spec.encoder import HeadSpec, LayerSpec, ModelSpec
from approxrt.artifact.spec.formats import MAX_GROUP_SCALE, TILE_K, TILE_N, LinearSpec
from approxrt.artifact.spec.int4_faults import group_count
from approxrt.artifact.storage.groupwise import pack_quarters, pack_unsigned
from approxrt.artifact.storage.int4 import pack_nibbles

TOKENIZER_JSON = b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"}}'


def small_spec(kind: str = "s8", hidden: int = 40, labels: tuple[str, ...] = ("no", "yes"), **changes) -> ModelSpec:
    """One layer whose sizes are no multiples of the tile: hidden 40 (not of 16), FFN 51 (of neither)."""
    layer = LayerSpec(2, hidden // 2, 51, *[kind] * 6)
    fields = {
        "architecture": "bert",
        "task_type": "classification",
        "vocab_size": 30,
        "embedding_size": hidden,
        "hidden_size": hidden,
        "max_positions": 16,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "activation": "gelu",
        "layers": (layer,),
        "head": HeadSpec(dense_features=hidden),
        "labels": labels,
        "max_length": 16,
        "embedding_kind": {"f32": "f32", "s4": "s4", "bsr_s4": "s4", "g4": "g4", "g6": "g6", "g8": "g8"}.get(
            kind, "s8"
        ),
    }
    return ModelSpec(**{**fields, **changes})


def random_bsr(
    linear: LinearSpec, rng: np.random.Generator, density: float = 0.6, largest: int = 127
) -> dict[str, np.ndarray]:
    """Random tiles, indices and indptr with zero padding."""
    strips, columns = -(-linear.out_features // TILE_N), -(-linear.in_features // TILE_K)
    mask = rng.random((strips, columns)) < density
    indptr = np.concatenate([[0], np.cumsum(mask.sum(1))]).astype(np.int32)
    indices = np.nonzero(mask)[1].astype(np.uint16)
    tiles = rng.integers(-largest, largest + 1, (len(indices), TILE_N, TILE_K), dtype=np.int8)
    rows = np.repeat(np.arange(strips), mask.sum(1))[:, None, None] * TILE_N + np.arange(TILE_N)[None, :, None]
    cols = indices.astype(int)[:, None, None] * TILE_K + np.arange(TILE_K)[None, None, :]
    tiles[(rows >= linear.out_features) | (cols >= linear.in_features)] = 0
    return {"tiles": tiles, "indices": indices, "indptr": indptr}


def random_bsr4(linear: LinearSpec, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The same in int4, with random group scales."""
    parts = random_bsr(linear, rng, largest=7)
    scales = rng.integers(1, MAX_GROUP_SCALE + 1, (group_count(parts["indptr"]), TILE_N), dtype=np.uint8)
    return {"tiles4": pack_nibbles(parts.pop("tiles")), "group_scale": scales, **parts}


def random_rows4(shape: tuple[int, ...], k: int, rng: np.random.Generator) -> np.ndarray:
    """Random nibbles of [N, k] int4 weights."""
    return pack_nibbles(rng.integers(-7, 8, (shape[0], k), dtype=np.int8))


def random_tensors(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    """Sound random tensors for `spec`."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    inputs = {name: linear.in_features for name, linear in spec.linears()}
    inputs["embeddings.word"] = spec.embedding_size
    names = {name for name, _, _ in spec.dense_tensors()}
    for name, dtype, shape in spec.dense_tensors():
        if name == "embeddings.word.wide":
            tensors[name] = np.sort(rng.permutation(spec.vocab_size)[: spec.wide_words]).astype(np.int32)
        elif dtype == "I8":
            tensors[name] = rng.integers(-127, 128, shape, dtype=np.int8)
        elif dtype == "F16":
            tensors[name] = rng.normal(0, 0.05, shape).astype(np.float16)
        elif name.endswith(".q2"):
            q = rng.integers(0, 4, (shape[0], inputs[name.removesuffix(".q2")]), dtype=np.uint8)
            tensors[name] = pack_quarters(q)
        elif name.endswith(".q4") and name.replace("q4", "scale") not in names:
            k = inputs[name.removesuffix(".q4")]
            tensors[name] = pack_unsigned(rng.integers(0, 16, (shape[0], k), dtype=np.uint8))
        elif name.endswith(".q4"):
            tensors[name] = random_rows4(shape, inputs[name.removesuffix(".q4")], rng)
        elif dtype == "U8":
            tensors[name] = rng.integers(1, MAX_GROUP_SCALE + 1, shape, dtype=np.uint8)
        elif dtype == "F32" and name.endswith(".scale"):
            tensors[name] = rng.uniform(1e-3, 1e-2, shape).astype(np.float32)
        elif dtype == "F32":
            tensors[name] = rng.normal(0, 0.1, shape).astype(np.float32)
    for name, linear in spec.linears():
        if linear.kind == "bsr_s8":
            tensors |= {f"{name}.{part}": value for part, value in random_bsr(linear, rng).items()}
        elif linear.kind == "bsr_s4":
            tensors |= {f"{name}.{part}": value for part, value in random_bsr4(linear, rng).items()}
    return tensors
