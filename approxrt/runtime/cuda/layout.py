"""Decide on the host how a GPU stores and cuts a linear: dense or in blocks, and which program does what.

An artifact stores 16x4 tiles, which both engines read. Tensor cores need larger blocks: a set of kept tiles that fills
whole blocks (`approxrt convert --target cuda` prunes 64 x 64) runs block-sparse; one that is scattered would touch
nearly every block, and runs dense. Pure functions of the kept tiles, without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from approxrt.artifact.spec.decoder import PREVIEW_OUT, PREVIEW_PROJECT, AnySpec
from approxrt.artifact.spec.formats import GROUP_KINDS, TILE_K, TILE_N, TILE_PARTS, LinearSpec

# Outputs x inputs of a block, coarse first.
BLOCKS = ((128, 128), (128, 64), (64, 128), (64, 64), (32, 64))
# What `convert --target cuda` prunes by: every block shape above that is no larger fits into it or is it.
PRUNE_BLOCK = (64, 64)
DENSE_N = 256

# A program loads BLOCK_M inputs for its BLOCK_N outputs, and these loads, not the products, bound a narrow block: its
# time a product is that of a wide one times 1 + LOAD_COST / BLOCK_N. An estimate from the ratio of int8 tensor-core
# rate to L2 bandwidth of an H100; `bench/gpu/run.sh` measures it.
LOAD_COST = 64


@dataclass(frozen=True)
class Layout:
    """Say how a linear [n, k] runs. `block` is None for dense; `macs` are what the GPU multiplies, `stored_macs` what
    the artifact stores (both a token)."""

    block: tuple[int, int] | None
    blocks: int
    macs: int
    stored_macs: int

    @property
    def cost(self) -> float:
        """Products executed for each one stored: over 1 where the sparsity does not suit the GPU."""
        return self.macs / max(1, self.stored_macs)


def choose_layout(kept: np.ndarray | None, n: int, k: int) -> Layout:
    """The cheapest layout for a linear [n, k] of which the 16x4 tiles `kept` bool[strips, columns] are stored.

    `kept` is None for a linear that is stored dense.
    """
    if kept is None:
        return Layout(None, 0, n * k, n * k)
    stored = int(np.count_nonzero(kept)) * TILE_N * TILE_K
    best, best_cost = Layout(None, 0, n * k, stored), n * k * (1 + LOAD_COST / DENSE_N)
    for block_n, block_k in BLOCKS:
        blocks = int(np.count_nonzero(kept_blocks(kept, block_n, block_k)))
        macs = blocks * block_n * block_k
        cost = macs * (1 + LOAD_COST / block_n)
        if cost < best_cost:
            best, best_cost = Layout((block_n, block_k), blocks, macs, stored), cost
    return best


def stacked_tiles(parts: Sequence[tuple[str, LinearSpec]], tensors: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """bool[strips, columns]: the 16x4 tiles that are stored of linears whose rows are stacked; None if all are dense.

    Where a linear's rows end within a strip, the next one's tiles straddle two strips: both count as stored.
    """
    if not any(linear.kind in TILE_PARTS for _, linear in parts):
        return None
    columns = -(-parts[0][1].in_features // TILE_K)
    total = sum(linear.out_features for _, linear in parts)
    kept = np.zeros((-(-total // TILE_N), columns), bool)
    first = 0
    for name, linear in parts:
        strips = -(-linear.out_features // TILE_N)
        own = np.ones((strips, columns), bool)
        if linear.kind in TILE_PARTS:
            own[:] = False
            owners = np.repeat(np.arange(strips), np.diff(tensors[f"{name}.indptr"]))
            own[owners, tensors[f"{name}.indices"]] = True
        rows = np.repeat(own, TILE_N, axis=0)[: linear.out_features]
        at = (first + np.arange(linear.out_features)) // TILE_N
        np.logical_or.at(kept, at, rows)
        first += linear.out_features
    return kept


def model_layouts(spec: AnySpec, tensors: Mapping[str, np.ndarray]) -> dict[str, Layout]:
    """The layout of every product of a model's linears on a GPU, by the linears' names joined with "+"."""
    return {
        "+".join(name for name, _ in parts): choose_layout(
            None
            if any(linear.kind == "f32" or linear.kind in GROUP_KINDS for _, linear in parts)
            else stacked_tiles(parts, tensors),
            sum(linear.out_features for _, linear in parts),
            parts[0][1].in_features,
        )
        for parts in products(spec)
    }


def model_cost(layouts: Mapping[str, Layout]) -> float:
    """Products that a GPU executes for each one that the artifact stores, over all linears of the layers."""
    inner = [layout for name, layout in layouts.items() if name.startswith("layers.")]
    return sum(layout.macs for layout in inner) / max(1, sum(layout.stored_macs for layout in inner)) if inner else 1.0


def products(spec: AnySpec) -> list[list[tuple[str, LinearSpec]]]:
    """A model's linears as the GPU multiplies them: query, key and value at once, and a decoder's gate and up."""
    out: list[list[tuple[str, LinearSpec]]] = []
    for name, linear in spec.linears():
        if name in (PREVIEW_PROJECT, PREVIEW_OUT):
            continue  # a GPU computes the whole head
        with_gate = name.endswith("ffn.up") and bool(out) and out[-1][-1][0].endswith("ffn.gate")
        if name.endswith(("attention.key", "attention.value")) or with_gate:
            out[-1].append((name, linear))
        else:
            out.append([(name, linear)])
    return out


def kept_blocks(kept: np.ndarray, block_n: int, block_k: int) -> np.ndarray:
    """bool[block rows, block columns]: the blocks in which a 16x4 tile is stored."""
    high, wide = block_n // TILE_N, block_k // TILE_K
    padded = np.pad(kept, ((0, -kept.shape[0] % high), (0, -kept.shape[1] % wide)))
    grid = padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide)
    return np.logical_or.reduce(grid, axis=(1, 3))


def to_blocks(q: np.ndarray, kept: np.ndarray, block: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (blocks i8[blocks, block_n, block_k], columns i32[blocks], indptr i32[block rows + 1]) of q i8[N, K].

    `kept` bool over 16x4 tiles; rows and columns past N and K are zeros.
    """
    block_n, block_k = block
    mask = kept_blocks(kept, block_n, block_k)
    padded = np.zeros((mask.shape[0] * block_n, mask.shape[1] * block_k), np.int8)
    padded[: q.shape[0], : q.shape[1]] = q
    grid = padded.reshape(mask.shape[0], block_n, mask.shape[1], block_k).transpose(0, 2, 1, 3)
    indptr = np.concatenate([[0], np.cumsum(mask.sum(axis=1))]).astype(np.int32)
    return np.ascontiguousarray(grid[mask]), np.nonzero(mask)[1].astype(np.int32), indptr


def work_items(indptr: np.ndarray, longest: int | None = None) -> np.ndarray:
    """i32 [items, 4]: (row of blocks, first block, end, parts of the row), longest first; each row has one at least.

    Rows of more than `longest` blocks are cut into parts as equal as can be; None cuts none.
    """
    items: list[tuple[int, int, int, int]] = []
    for row, (begin, end) in enumerate(zip(indptr[:-1].tolist(), indptr[1:].tolist(), strict=True)):
        count = end - begin
        parts = 1 if longest is None else max(1, -(-count // longest))
        cuts = [begin + count * i // parts for i in range(parts + 1)]
        items += [(row, cuts[i], cuts[i + 1], parts) for i in range(parts)]
    items.sort(key=lambda item: item[1] - item[2])
    return np.array(items, np.int32).reshape(-1, 4)


def longest_part(lengths: Sequence[int], programs: int, wanted: int) -> int | None:
    """Return how many blocks an item may have so that the launch has about `wanted` programs; None where it has without
    cuts.

    `lengths` are blocks by row, `programs` how many tiles of tokens each row is multiplied for. Items stay at least
    four blocks long: starting a program and adding its sums cost as much as two or three.
    """
    if programs * len(lengths) >= wanted or not any(lengths):
        return None
    share = programs * sum(lengths) / wanted
    longest = max(4, math.ceil(share))
    return longest if longest < max(lengths) else None
