"""List what every block of an encoder may become, with the loss that significance scores predict.

Every block (an attention or an FFN) has options: so many heads or channels, so many of the remaining tiles, so many
bits. An option has a loss (what the scores say is lost), a time (from the measured latency table) and bytes.

Scores live on elements of weights, in units of the loss; a tile's is the sum over its elements. A head goes with its
columns of the output projection or its rows of the value projection, whichever costs less: without one the other has
no effect. The same for an FFN channel's row of `up` and column of `down`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.spec.formats import TILE_K, TILE_N, LinearKind
from approxrt.artifact.storage.bsr import to_tiles
from approxrt.planning.allocate import Decision, Price
from approxrt.planning.plan import Option
from approxrt.pruning.structure import QKV, head_rows, strips_of
from approxrt.quantization.scheme import Scheme, tile_bytes

DENSITIES = (1.0, 0.85, 0.7, 0.6, 0.5, 0.42, 0.35, 0.3, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08, 0.06, 0.04, 0.025)
SIZES = 13  # structure sizes that are tried for a block, at most


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


class LatencyTable(Protocol):
    """Measured milliseconds of one block on the task's workload."""

    def ms(self, block: str, size: int, density: float, kind: LinearKind) -> float:
        """Return those of an attention with `size` heads or an FFN of `size` channels, `density` of its tiles kept."""
        ...


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
        # A part: a head, or a group of 16 channels.
        self.order = np.argsort(-parts, kind="stable")
        self.lost = np.concatenate([np.cumsum(parts[self.order][::-1])[::-1], [0.0]])

    def elements(self, parts: int) -> np.ndarray:
        """Rows of the block's inner width that the best `parts` parts own, ascending."""
        kept = np.sort(self.order[:parts])
        if self.block.kind == "attention":
            return head_rows(kept, self.head_dim)
        channels = self.scores[self.block.linears[0]].shape[0]
        return np.flatnonzero(np.isin(strips_of(channels), kept))

    def inner(self, scores: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
        """The scores of what remains: rows of the first linears, columns of the last."""
        *first, last = self.block.linears
        return {name: scores[name][rows] for name in first} | {last: scores[last][:, rows]}

    def tile_scores(self, parts: int) -> dict[str, np.ndarray]:
        """Return, by linear, f32[strips, columns] over the tiles of what remains."""
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
                out.append(Option(Scheme("s8"), float(self.lost[0]), 0.0, size_bytes, 0))
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
                    scheme = Scheme(form, density)
                    size_bytes = block_bytes(spec, kind, size, scheme, self.head_dim)
                    out.append(Option(scheme, lost + noise, ms, size_bytes, size))
        return out

    def kept(self, size: int) -> np.ndarray:
        """Return the heads or channels that stay where so many do."""
        rows = self.elements(self._parts(size)) if size else np.arange(0)
        return rows if self.block.kind == "ffn" else rows[:: self.head_dim] // self.head_dim

    def masks(self, size: int, density: float) -> dict[str, np.ndarray]:
        """Return masks of tiles over what remains: the best `density` of them, at least one a linear."""
        tiles = self.tile_scores(self._parts(size))
        flat = np.concatenate([x.ravel() for x in tiles.values()])
        keep = np.zeros(len(flat), bool)
        keep[np.argsort(-flat, kind="stable")[: len(flat) - round((1 - density) * len(flat))]] = True
        masks, start = {}, 0
        for name, score in tiles.items():
            masks[name] = keep[start : start + score.size].reshape(score.shape)
            start += score.size
        return masks

    def _parts(self, size: int) -> int:
        """The number of parts that a size stands for."""
        return size if self.block.kind == "attention" else -(-size // TILE_N)


@dataclass(frozen=True)
class BlockPart:
    """A block whose options can be listed; see `approxrt.planning.allocate.Part`."""

    scored: BlockScores
    options: Sequence[Option]

    def best(self, price: Price) -> Decision:
        """Return the option that is best at a price."""
        return self.decide(min(self.options, key=price.of))

    def decide(self, option: Option) -> Decision:
        """Return what an option means for the model."""
        block, size = self.scored.block, option.size
        assert size is not None
        schemes = dict.fromkeys(block.linears, option.scheme) if size else {}
        kept = self.scored.kept(size)
        return Decision(option.loss, option.ms, option.bytes, schemes, (block.layer, block.kind), kept)
