"""Do these arrays make the model that the spec describes? Every fault, vectorised.

The kernels trust what passes here: an index that passed is in range, a strip's
tiles ascend, a scale is a positive finite number, and -128 does not occur (the
engine's |q| <= 127 keeps sums within their int32 bound). What int4 values must
be is in `approxrt.artifact.spec.int4_faults`. With float16 scales of groups every nibble and
byte will do, and every finite scale: sums are of 32 products before they become floats.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping

import numpy as np

from approxrt.artifact.spec import int4_faults as int4
from approxrt.artifact.spec.decoder import AnySpec
from approxrt.artifact.spec.faults import show
from approxrt.artifact.spec.formats import GROUP_KINDS, TILE_K, TILE_N, TILE_PARTS, LinearSpec

DTYPES: dict[str, np.dtype] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
}
# csrc/args.h, kMostBias: far from the scores that stand for keys that are not there.
MAX_RELATIVE_BIAS = 1e28
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# indices are u16, so a linear with more tile columns cannot be stored block-sparse
MAX_TILE_COLUMNS = 1 << 16


def tensor_faults(spec: AnySpec, tensors: Mapping[str, np.ndarray]) -> list[str]:
    """All faults of `tensors` against `spec`, in plain words; empty when they fit.

    The spec need not be sound, but its types are right: sizes may be any integers.
    """
    expected = {name: (dtype, shape) for name, dtype, shape in spec.dense_tensors()}
    bsr = {name: linear for name, linear in spec.linears() if linear.kind in TILE_PARTS}
    names = [*expected, *(f"{name}.{part}" for name, linear in bsr.items() for part in TILE_PARTS[linear.kind])]
    faults: list[str] = []
    missing = [name for name in names if name not in tensors]
    if missing:
        faults.append(f"missing tensors: {_some(missing)}")
    unexpected = sorted(set(tensors) - set(names))
    if unexpected:
        faults.append(f"unexpected tensors: {_some(unexpected)}")
    grouped: dict[str, tuple[str, int]] = {name: (linear.kind, linear.in_features) for name, linear in spec.linears()}
    grouped["embeddings.word"] = (spec.embedding_kind, spec.embedding_size)
    whole_bytes = {f"{name}.q" for name, (kind, _) in grouped.items() if kind in GROUP_KINDS}
    # Of the last byte of a row: how many bits are weights, where not all are.
    by_group = {name: k for name, (kind, k) in grouped.items() if kind in GROUP_KINDS}
    surplus = {f"{name}.q4": 4 for name, k in by_group.items() if k % 2}
    by_group |= {name: k for name, (kind, k) in grouped.items() if kind == "s2"}
    surplus |= {f"{name}.q2": 2 * (k % 4) for name, k in by_group.items() if k % 4}
    for name, (dtype, shape) in expected.items():
        if name not in tensors:
            continue
        array = tensors[name]
        if array.dtype != DTYPES[dtype] or array.shape != shape:
            faults.append(
                f"tensor {name!r} is {_describe(array)}; the config asks for {_NAMES[DTYPES[dtype]]}{_sizes(shape)}"
            )
            continue
        faults += _value_faults(name, array, whole_bytes)
        if name in surplus and np.any(array[:, -1] >> surplus[name]):
            k = grouped[name.rpartition(".")[0]][1]
            faults.append(f"tensor {name!r} has weights past input {k}; the surplus bits of a row must be 0")
    rows = {name: (linear.in_features, int4.MAX_GROUP_SCALE) for name, linear in spec.linears() if linear.kind == "s4"}
    if spec.embedding_kind in ("s4", "s2"):
        rows["embeddings.word"] = (spec.embedding_size, spec.embedding_group_scale)
    for name, (k, highest) in rows.items():
        for part in (f"{name}.q4", f"{name}.group_scale"):
            dtype, shape = expected[part]
            if part not in tensors or tensors[part].dtype != DTYPES[dtype] or tensors[part].shape != shape:
                continue  # said already
            if part.endswith(".q4"):
                faults += int4.row_faults(part, tensors[part], k)
            else:
                faults += int4.scale_faults(part, tensors[part], highest)
    if spec.embedding_kind == "s2" and "embeddings.word.wide" in tensors:
        faults += _wide_faults("embeddings.word.wide", tensors["embeddings.word.wide"], spec.vocab_size)
    for name, linear in bsr.items():
        parts = {part: tensors.get(f"{name}.{part}") for part in (*TILE_PARTS[linear.kind], "indptr")}
        present = {part: array for part, array in parts.items() if array is not None}
        if len(present) == len(parts):
            faults += _bsr_faults(name, linear, present)
    return faults


def _value_faults(name: str, array: np.ndarray, whole_bytes: Container[str]) -> Iterator[str]:
    """Faults that one tensor has by itself; those in `whole_bytes` are int8 of all 256 values."""
    if not array.flags.aligned or not array.flags.c_contiguous:
        yield f"tensor {name!r} is not stored aligned and in row-major order"
    if array.dtype == np.float16:
        # All bits of the exponent set.
        bad = int(np.count_nonzero(array.view(np.uint16) & 0x7C00 == 0x7C00))
        if bad:
            yield f"tensor {name!r} has {bad} values that are NaN or infinite"
    elif array.dtype == np.float32:
        # A sum is finite only if every term is (or on overflow, which the exact test then clears): one fast pass.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(array.sum(dtype=np.float32))
        if suspicious:
            bad = int(array.size - np.count_nonzero(np.isfinite(array)))
            if bad:
                yield f"tensor {name!r} has {bad} values that are NaN or infinite"
        if name.endswith(".relative_bias") and array.size and not np.abs(array).max() <= MAX_RELATIVE_BIAS:
            yield f"tensor {name!r} has values of a magnitude over {MAX_RELATIVE_BIAS:g}"
        if name.endswith(".scale") and array.size:
            bad = int(np.count_nonzero(~(array > 0)))
            if bad:
                first = int(np.argmax(~(array > 0)))
                yield f"tensor {name!r} has {bad} scales that are not > 0 (the first is {array[first]} at {first})"
    elif name.endswith(".q") and name not in whole_bytes and array.size and array.min() < -127:
        bad = int(np.count_nonzero(array == -128))
        yield f"tensor {name!r} has {bad} values of -128; the range is -127 to 127"


def _wide_faults(name: str, ids: np.ndarray, vocab: int) -> Iterator[str]:
    """Ids of the rows with four bits that do not ascend strictly within the vocabulary."""
    if ids.dtype != np.int32 or ids.ndim != 1 or not ids.size:
        return  # said already, or nothing to say
    if ids[0] < 0 or ids[-1] >= vocab or np.any(ids[1:] <= ids[:-1]):
        yield f"tensor {name!r} must ascend strictly within 0 to {vocab - 1}; it goes from {ids[0]} to {ids[-1]}"


def _bsr_faults(name: str, linear: LinearSpec, parts: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Faults of one block-sparse linear; checks that rest on a broken one are left out."""
    n, k = linear.out_features, linear.in_features
    part = TILE_PARTS[linear.kind][0]
    dtype, shape = ("U8", (TILE_N, TILE_K // 2)) if linear.kind == "bsr_s4" else ("I8", (TILE_N, TILE_K))
    tiles, indices, indptr = parts[part], parts["indices"], parts["indptr"]
    columns, strips = -(-k // TILE_K), -(-n // TILE_N)
    if columns > MAX_TILE_COLUMNS:
        yield f"linear {name!r} has {show(k)} inputs; {linear.kind} indexes at most {MAX_TILE_COLUMNS * TILE_K}"
        return
    sound = True
    if tiles.dtype != DTYPES[dtype] or tiles.ndim != 3 or tiles.shape[1:] != shape:
        yield f"tensor '{name}.{part}' is {_describe(tiles)}; {dtype}[nnz, {shape[0]}, {shape[1]}] is needed"
        sound = False
    if indices.dtype != np.uint16 or indices.ndim != 1:
        yield f"tensor '{name}.indices' is {_describe(indices)}; U16[nnz] is needed"
        sound = False
    if indptr.dtype != np.int32 or indptr.shape != (strips + 1,):
        sound = False  # the dense check has said so
    if not sound:
        return
    if not (tiles.flags.aligned and tiles.flags.c_contiguous and indices.flags.aligned):
        yield f"the tiles of {name!r} are not stored aligned and in row-major order"
    nnz = len(indices)
    if len(tiles) != nnz:
        yield f"linear {name!r} has {len(tiles)} tiles but {nnz} indices"
        return
    if linear.kind == "bsr_s4":
        yield from int4.nibble_faults(f"{name}.tiles4", tiles)
    elif nnz and tiles.min() < -127:
        bad = int(np.count_nonzero(tiles == -128))
        yield f"tensor '{name}.tiles' has {bad} values of -128; the range is -127 to 127"
    outside = int(np.count_nonzero(indices >= columns))
    if outside:
        yield (
            f"tensor '{name}.indices' has {outside} tile indices out of range (the largest is {indices.max()}; "
            f"{k} inputs make {columns} tile columns)"
        )
    if indptr[0] != 0 or indptr[-1] != nnz or np.any(indptr[1:] < indptr[:-1]):
        yield f"tensor '{name}.indptr' must rise from 0 to {nnz}; it starts at {indptr[0]}, ends at {indptr[-1]}" + (
            " and falls in between" if np.any(indptr[1:] < indptr[:-1]) else ""
        )
        return
    if nnz > 1:
        ascends = indices[1:] > indices[:-1]
        starts = indptr[1:-1]
        # the step from one strip's last tile to the next strip's first is free
        ascends[starts[(starts > 0) & (starts < nnz)] - 1] = True
        if not ascends.all():
            strip = int(np.searchsorted(indptr, np.argmin(ascends), side="right")) - 1
            yield f"tensor '{name}.indices' does not ascend strictly within strip {strip}"
    if linear.kind == "bsr_s4":
        yield from _group_scale_faults(name, parts["group_scale"], int4.group_count(indptr))
        yield from int4.tile_padding_faults(name, tiles, indices, indptr, (n, k))
        return
    if n % TILE_N and np.any(tiles[indptr[-2] :, n % TILE_N :, :]):
        yield f"tensor '{name}.tiles' has nonzero values in rows past output {n}; padding must be zero"
    if k % TILE_K and np.any(tiles[indices == columns - 1][:, :, k % TILE_K :]):
        yield f"tensor '{name}.tiles' has nonzero values in columns past input {k}; padding must be zero"


def _group_scale_faults(name: str, scales: np.ndarray, groups: int) -> Iterator[str]:
    if scales.dtype != np.uint8 or scales.shape != (groups, TILE_N) or not scales.flags.c_contiguous:
        yield (
            f"tensor '{name}.group_scale' is {_describe(scales)}; U8[{groups}, {TILE_N}] is needed, "
            f"a row for every {int4.GROUP_TILES} tiles of a strip"
        )
    else:
        yield from int4.scale_faults(f"{name}.group_scale", scales)


def _sizes(shape: Iterable[int]) -> str:
    """A shape that a config asks for, which may be of any size, in a message."""
    return f"[{', '.join(map(show, shape))}]"


def _describe(array: np.ndarray) -> str:
    return f"{_NAMES.get(array.dtype, str(array.dtype))}{list(array.shape)}"


def _some(items: list[str], limit: int = 8) -> str:
    more = len(items) - limit
    return ", ".join(items[:limit]) + (f" and {more} more" if more > 0 else "")
