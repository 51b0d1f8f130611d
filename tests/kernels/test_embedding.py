"""Embedding lookup: f32, int8, int4 and mixed rows, with and without token types."""

from __future__ import annotations

import numpy as np
import pytest
from levels import EPS, every_level

from approxrt._C import kernels
from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.artifact.storage.groupwise import dequantize_groups, pack_quarters, pack_unsigned
from approxrt.artifact.storage.int4 import pack_nibbles, row_integers
from approxrt.artifact.storage.mixed_rows import mixed_integers
from approxrt.quantization.groupwise import quantize_groups6


@every_level
@pytest.mark.parametrize("width", [1, 7, 8, 9, 16, 17, 31, 32, 33, 40, 79])
@pytest.mark.parametrize("kind", ["f32", "s8", "s4", "s2", "g8", "g6", "g4"])
@pytest.mark.parametrize("typed", [False, True])
def test_sum_of_tables(isa: str, width: int, kind: str, typed: bool) -> None:
    rng = np.random.default_rng(width)
    position = rng.standard_normal((6, width)).astype(np.float32)
    types_table = rng.standard_normal((2, width)).astype(np.float32) if typed else None
    ids, positions = np.array([0, 4, 2, 4], np.int32), np.array([0, 1, 5, 0], np.int32)
    types = np.array([0, 1, 1, 0], np.int32) if typed else None
    group_scale, halves = None, {}
    if kind == "s8":
        word, scale = rng.integers(-127, 128, (5, width)).astype(np.int8), rng.uniform(0.01, 1, 5).astype(np.float32)
        rows = word[ids].astype(np.float64) * scale[ids][:, None]
    elif kind == "s4":
        q4 = rng.integers(-7, 8, (5, width)).astype(np.int8)
        word, scale = pack_nibbles(q4), rng.uniform(0.01, 1, 5).astype(np.float32)
        group_scale = rng.choice([1, 2, 77, 255], (5, -(-width // GROUP_WEIGHTS))).astype(np.uint8)
        rows = row_integers(word, group_scale, width)[ids].astype(np.float64) * scale[ids][:, None]
    elif kind == "s2":
        scale = rng.uniform(0.01, 1, 5).astype(np.float32)
        group_scale = rng.choice([1, 2, 77, 255], (5, -(-width // GROUP_WEIGHTS))).astype(np.uint8)
        wide = np.array([[], [2], [0, 4], [0, 1, 2, 3, 4]][width % 4], np.int32)
        word = pack_nibbles(rng.integers(-7, 8, (len(wide), width)).astype(np.int8))
        q2 = pack_quarters(rng.integers(0, 4, (5 - len(wide), width)).astype(np.uint8))
        halves = {"q2": q2, "wide": wide}
        parts = {"q4": word, "q2": q2, "wide": wide, "group_scale": group_scale}
        integers = mixed_integers({f"embeddings.word.{part}": array for part, array in parts.items()}, width)
        rows = integers[ids].astype(np.float64) * scale[ids][:, None]
    elif kind in ("g4", "g6", "g8"):
        scale, groups = None, (5, -(-width // GROUP_WEIGHTS))
        halves = {"half_scale": rng.normal(0, 0.1, groups).astype(np.float16)}
        if kind == "g4":
            word = pack_unsigned(rng.integers(0, 16, (5, width)).astype(np.uint8))
            halves["half_offset"] = rng.normal(0, 1, groups).astype(np.float16)
            parts = {"q4": word, "group_scale": halves["half_scale"], "group_offset": halves["half_offset"]}
        elif kind == "g6":
            parts = quantize_groups6(rng.normal(0, 1, (5, width)).astype(np.float32))
            word, halves = parts["q4"], {"half_scale": parts["group_scale"], "q2": parts["q2"]}
        else:
            word = rng.integers(-128, 128, (5, width)).astype(np.int8)
            parts = {"q": word, "group_scale": halves["half_scale"]}
        rows = dequantize_groups(parts, width)[ids].astype(np.float64)
    else:
        word, scale = rng.standard_normal((5, width)).astype(np.float32), None
        rows = word[ids].astype(np.float64)
    out = kernels.embedding(word, scale, position, types_table, ids, positions, types, isa, group_scale, **halves)
    parts = [rows, position[positions].astype(np.float64)]
    if typed:
        parts.append(types_table[types].astype(np.float64))
    tolerance = 4 * EPS * sum(np.abs(part) for part in parts)
    assert (np.abs(out - sum(parts)) <= tolerance).all()


def test_ids_out_of_range_are_refused() -> None:
    table = np.zeros((3, 8), np.float32)
    zero = np.zeros(1, np.int32)
    with pytest.raises(ValueError, match="out of range"):
        kernels.embedding(table, None, table, None, np.array([3], np.int32), zero, None)
    with pytest.raises(ValueError, match="out of range"):
        kernels.embedding(table, None, table, None, np.array([-1], np.int32), zero, None)


def test_int4_tables_of_wrong_shape_are_refused() -> None:
    word, scale, zero = np.full((3, 20), 0x88, np.uint8), np.ones(3, np.float32), np.zeros(1, np.int32)
    position, groups = np.zeros((3, 40), np.float32), np.ones((3, 2), np.uint8)
    kernels.embedding(word, scale, position, None, zero, zero, None, group_scale=groups)
    with pytest.raises(ValueError, match="group_scale"):
        kernels.embedding(word, scale, position, None, zero, zero, None, group_scale=groups[:, :1].copy())
    with pytest.raises(ValueError, match="shapes of tables"):
        kernels.embedding(word[:, :19].copy(), scale, position, None, zero, zero, None, group_scale=groups)


def test_mixed_tables_of_wrong_shape_are_refused() -> None:
    def look_up(wide: list[int], q2: int = 3, groups: int = 5) -> None:
        word, zero = np.full((len(wide), 20), 0x88, np.uint8), np.zeros(1, np.int32)
        position, scale = np.zeros((3, 40), np.float32), np.ones(5, np.float32)
        quarters, group_scale = np.zeros((q2, 10), np.uint8), np.ones((groups, 2), np.uint8)
        ids = np.array(wide, np.int32)
        kernels.embedding(word, scale, position, None, zero, zero, None, group_scale=group_scale, q2=quarters, wide=ids)

    look_up([1, 4])
    for wide in ([4, 1], [1, 1], [-1, 2], [1, 5]):
        with pytest.raises(ValueError, match="wide must ascend strictly within 0 to 4"):
            look_up(wide)
    with pytest.raises(ValueError, match="word_scale"):
        look_up([1, 3], q2=2)
    with pytest.raises(ValueError, match="group_scale"):
        look_up([1, 4], groups=4)
