"""Who gives up how much: the choice of structure, density and format for every block under measured limits.

Every block (an attention or an FFN) has options: so many heads or units, so many of the remaining tiles, so many
bits.
An option has an error (what the significance scores say is lost), a time (from the measured latency table) and bytes.
The sum of errors is minimised under a limit on time and one on bytes: a dynamic programme over time, with a price on
bytes that is bisected (as SPDY, Frantar & Alistarh 2022, arXiv 2201.13096, and ZipLM, arXiv 2302.04089).

Scores live on elements of weights, in units of the loss; a tile's is the sum over its elements. A head goes with its
columns of the output projection or its rows of the value projection, whichever costs less: without one the other has
no effect. The same for an FFN unit's row of `up` and column of `down`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.spec.formats import TILE_K, TILE_N, LinearKind
from approxrt.artifact.storage.bsr import to_tiles
from approxrt.pruning.structure import QKV, Structure, head_rows, strips_of
from approxrt.quantization.scheme import Scheme, tile_bytes

DENSITIES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08, 0.06, 0.04, 0.025)
SIZES = 13  # structure sizes that are tried for a block, at most
BUCKETS = 2000  # of time in the dynamic programme


@dataclass(frozen=True)
class Block:
    """A sub-layer: "attention" or "ffn" of layer `layer`."""

    layer: int
    kind: str

    @property
    def linears(self) -> tuple[str, ...]:
        parts = (*QKV, "output") if self.kind == "attention" else ("up", "down")
        return tuple(f"layers.{self.layer}.{self.kind}.{part}" for part in parts)

    @property
    def name(self) -> str:
        return f"layers.{self.layer}.{self.kind}"


@dataclass(frozen=True)
class Option:
    """Hold what a block may become. `size` counts heads or units; 0 removes it. `density` is over what remains."""

    size: int
    density: float
    format: LinearKind
    error: float
    ms: float
    bytes: int


class LatencyTable(Protocol):
    """Measured milliseconds of one block on the task's workload."""

    def ms(self, block: str, size: int, density: float, kind: LinearKind) -> float:
        """Return those of an attention with `size` heads or an FFN with `size` units, `density` of its tiles kept."""
        ...


@dataclass(frozen=True)
class Allocation:
    """One option a block; predicted totals."""

    options: Mapping[Block, Option]
    ms: float
    bytes: int
    error: float


def blocks_of(spec: ModelSpec) -> list[Block]:
    """The sub-layers that are still there."""
    out = []
    for i, layer in enumerate(spec.layers):
        out += [Block(i, "attention")] if layer.num_heads else []
        out += [Block(i, "ffn")] if layer.intermediate_size else []
    return out


def block_bytes(spec: ModelSpec, kind: str, size: int, scheme: Scheme, head_dim: int) -> int:
    """Bytes of a block's weights in the artifact: tiles with their indices, scales, biases."""
    hidden = spec.hidden_size
    if size == 0:
        return 4 * hidden
    width = size * head_dim if kind == "attention" else size
    linears = 4 if kind == "attention" else 2
    tiles = linears * -(-width // TILE_N) * -(-hidden // TILE_K) * scheme.density
    outputs = (3 * width + hidden) if kind == "attention" else width + hidden
    return round(tiles * tile_bytes(scheme.format, scheme.density) + 8 * outputs)


class BlockScores:
    """The options of one block and their errors, from element scores (see the module's text)."""

    def __init__(self, spec: ModelSpec, block: Block, scores: Mapping[str, np.ndarray]) -> None:
        layer = spec.layers[block.layer]
        self.spec, self.block, self.head_dim = spec, block, layer.head_dim
        self.scores = {name: np.asarray(scores[name]) for name in block.linears}
        last = block.linears[-1]
        column = self.scores[last].sum(axis=0, dtype=np.float64)
        if block.kind == "attention":
            value = self.scores[block.linears[2]].sum(axis=1, dtype=np.float64)
            parts = np.minimum(*(x.reshape(layer.num_heads, -1).sum(axis=1) for x in (column, value)))
            self.count = layer.num_heads
        else:
            row = self.scores[block.linears[0]].sum(axis=1, dtype=np.float64)
            groups = strips_of(layer.intermediate_size)
            parts = np.minimum(*(np.bincount(groups, x) for x in (column, row)))
            self.count = len(parts)
        # A part: a head, or a group of 16 units.
        self.order = np.argsort(-parts, kind="stable")
        self.lost = np.concatenate([np.cumsum(parts[self.order][::-1])[::-1], [0.0]])

    def elements(self, parts: int) -> np.ndarray:
        """Rows of the block's inner width that the best `parts` parts own, ascending."""
        kept = np.sort(self.order[:parts])
        if self.block.kind == "attention":
            return head_rows(kept, self.head_dim)
        units = self.scores[self.block.linears[0]].shape[0]
        return np.flatnonzero(np.isin(strips_of(units), kept))

    def inner(self, scores: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """The scores of what remains: rows of the first linears, columns of the last."""
        *first, last = self.block.linears
        return {name: scores[name][rows] for name in first} | {last: scores[last][:, rows]}

    def tile_scores(self, parts: int) -> dict[str, np.ndarray]:
        """By linear, f32[strips, columns] over the tiles of what remains."""
        kept = self.inner(self.scores, self.elements(parts))
        return {name: to_tiles(score).sum(axis=(2, 3), dtype=np.float64) for name, score in kept.items()}

    def sizes(self) -> list[int]:
        """Numbers of parts that are tried: all, none, and some between."""
        step = max(1, -(-self.count // (SIZES - 1)))
        return sorted({0, self.count, *range(step, self.count, step)})

    def options(
        self,
        table: LatencyTable,
        formats: Sequence[LinearKind],
        quant_error: Mapping[LinearKind, float],
        share: float = 1.0,
        densities: Sequence[float] = DENSITIES,
    ) -> list[Option]:
        """All options; `quant_error` is what formats cost when all tiles are kept, `share` scales times.

        densities   those that are tried; (1.0,) leaves tiles alone, for devices whose kernels want other tiles
        """
        spec, kind, out = self.spec, self.block.kind, []
        total = float(sum(score.sum(dtype=np.float64) for score in self.scores.values())) or 1.0
        for parts in self.sizes():
            if parts == 0:
                size_bytes = block_bytes(spec, kind, 0, Scheme("s8"), self.head_dim)
                out.append(Option(0, 1.0, "s8", float(self.lost[0]), 0.0, size_bytes))
                continue
            size = parts if kind == "attention" else len(self.elements(parts))
            tiles = np.sort(np.concatenate([x.ravel() for x in self.tile_scores(parts).values()]))
            gone = np.concatenate([[0.0], np.cumsum(tiles)])
            for density in densities:
                removed = round((1 - density) * len(tiles))
                lost = float(self.lost[parts] + gone[removed])
                for form in formats:
                    noise = quant_error.get(form, 0.0) * max(0.0, 1 - lost / total)
                    ms = share * table.ms(kind, size, density, form)
                    size_bytes = block_bytes(spec, kind, size, Scheme(form, density), self.head_dim)
                    out.append(Option(size, density, form, lost + noise, ms, size_bytes))
        return out

    def parts_of(self, option: Option) -> int:
        """The number of parts that an option's size stands for."""
        return option.size if self.block.kind == "attention" else -(-option.size // TILE_N)

    def masks(self, option: Option) -> dict[str, np.ndarray]:
        """Masks of tiles over what remains: the best `density` of them, at least one a linear."""
        tiles = self.tile_scores(self.parts_of(option))
        flat = np.concatenate([x.ravel() for x in tiles.values()])
        keep = np.zeros(len(flat), bool)
        keep[np.argsort(-flat, kind="stable")[: len(flat) - round((1 - option.density) * len(flat))]] = True
        masks, start = {}, 0
        for name, score in tiles.items():
            masks[name] = keep[start : start + score.size].reshape(score.shape)
            start += score.size
        return masks


def structure_of(spec: ModelSpec, scored: Mapping[Block, BlockScores], chosen: Mapping[Block, Option]) -> Structure:
    """The heads and units that an allocation keeps."""
    whole = Structure.of(spec)
    heads, units = list(whole.heads), list(whole.units)
    for block, option in chosen.items():
        rows = scored[block].elements(scored[block].parts_of(option)) if option.size else np.arange(0)
        if block.kind == "ffn":
            units[block.layer] = rows
        else:
            dim = spec.layers[block.layer].head_dim
            heads[block.layer] = rows[::dim] // dim
    return Structure(tuple(heads), tuple(units))


def allocate(
    options: Mapping[Block, Sequence[Option]], ms: float | None = None, max_bytes: int | None = None
) -> Allocation | None:
    """The least error within `ms` milliseconds and `max_bytes` bytes of all blocks together; None where none fits."""
    pruned = {block: _undominated(choices) for block, choices in options.items()}
    best = _cheapest(pruned, ms, 0.0)
    if best is None or max_bytes is None or best.bytes <= max_bytes:
        return best
    low, high = 0.0, 1e-12
    while (trial := _cheapest(pruned, ms, high)) is not None and trial.bytes > max_bytes:
        low, high = high, high * 8
        if high > 1e12:
            return None
    best = trial
    for _ in range(24):
        middle = (low * high) ** 0.5 if low else high / 8
        trial = _cheapest(pruned, ms, middle)
        if trial is not None and trial.bytes <= max_bytes:
            best, high = trial, middle
        else:
            low = middle
    return best


def _undominated(choices: Sequence[Option]) -> list[Option]:
    """Without options that another beats or equals in error, time and bytes alike."""
    array = np.array([(o.error, o.ms, o.bytes) for o in choices])
    keep = []
    for i, row in enumerate(array):
        better = (array <= row).all(axis=1) & (array < row).any(axis=1)
        if not better.any():
            keep.append(choices[i])
    return keep


def _cheapest(options: Mapping[Block, Sequence[Option]], ms: float | None, price: float) -> Allocation | None:
    """Least error + price * bytes within `ms`."""
    if ms is None:
        return _total({block: min(o, key=lambda x: x.error + price * x.bytes) for block, o in options.items()})
    unit = ms / BUCKETS
    value = np.zeros(BUCKETS + 1)
    steps: list[tuple[Block, Sequence[Option], np.ndarray]] = []
    for block, choices in options.items():
        new = np.full(BUCKETS + 1, np.inf)
        pick = np.zeros(BUCKETS + 1, np.int32)
        for index, option in enumerate(choices):
            cost = max(0, int(np.ceil(option.ms / unit - 1e-9)))
            if cost > BUCKETS:
                continue
            trial = np.full(BUCKETS + 1, np.inf)
            trial[cost:] = value[: BUCKETS + 1 - cost] + option.error + price * option.bytes
            better = trial < new
            new[better], pick[better] = trial[better], index
        value = new
        steps.append((block, choices, pick))
    if not np.isfinite(value[-1]):
        return None
    chosen: dict[Block, Option] = {}
    at = BUCKETS
    for block, choices, pick in reversed(steps):
        option = choices[pick[at]]
        chosen[block] = option
        at -= max(0, int(np.ceil(option.ms / unit - 1e-9)))
    return _total(dict(reversed(chosen.items())))


def _total(chosen: Mapping[Block, Option]) -> Allocation:
    return Allocation(
        chosen,
        sum(o.ms for o in chosen.values()),
        sum(o.bytes for o in chosen.values()),
        sum(o.error for o in chosen.values()),
    )
