"""List what each part of a decoder may become, with its cost in loss and time, and choose a plan.

A linear has a scheme (`approxrt.quantization.scheme`): so many bits, so many of its 16x4 tiles. A block (attention or
FFN of a layer) has a structure: so many key-value groups with so many query heads each, so many units, or nothing at
all. Losses are in nats a token, from second-order statistics (`approxrt.pruning.second_order`); those of whole blocks
may be measured instead (`approxrt.significance.decoder_removal`).

Losses, seconds and bytes add up over blocks, so for any price on seconds (or bytes) each block can choose for itself;
a plan is found by bisecting the price (as SPDY, Frantar & Alistarh 2022, arXiv 2201.13096, but for its programme:
with hundreds of linears the steps between prices are small).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.pruning.obs import group_curve
from approxrt.pruning.second_order import LinearStatistics
from approxrt.pruning.structure import GROUPS, Structure, channel_groups
from approxrt.quantization.scheme import SCHEMES, Scheme

HEAD = "head.out"
# Prices on seconds or bytes at which nothing and everything is worth it.
PRICES = (1e-12, 1e12)


def schemes_of(name: str, own: Scheme | None) -> list[Scheme]:
    """Return what the linear `name` may become; `own` is the scheme with groups that its checkpoint has, None for
    floats.

    What takes more bytes than the checkpoint's own is no choice. Beside grids of a file only kinds with groups are:
    the others read activations on one scale a token, which outliers spoil in coordinates that are not rotated (four
    such linears of SmolLM2-135M in int4, each predicted to be free, cost 5 % of perplexity).
    """
    if own is None:
        return [s for s in SCHEMES if (name != HEAD if s.sparse else s.format in ("s4", "g4", "s8"))]
    sizes = 1, 128 * GROUP_WEIGHTS  # any that are large: bytes a weight decide
    return [own, *(s for s in (Scheme("g6"), Scheme("g4")) if s.bytes(*sizes) < own.bytes(*sizes))]


@dataclass(frozen=True)
class LinearOption:
    """A linear in one scheme: nats a token that it adds, seconds a token, bytes."""

    scheme: Scheme
    loss: float
    seconds: float
    bytes: int


@dataclass(frozen=True)
class BlockOption:
    """A block with some of its heads or units: `kept` in their order; `share` of its linears' weights stays.

    `loss` is what removing the others adds.
    """

    kept: np.ndarray
    share: float
    loss: float


@dataclass(frozen=True)
class Plan:
    """Hold what is chosen. `schemes` of linears that stay; predicted nats and seconds a token, bytes of linears."""

    schemes: Mapping[str, Scheme]
    keep: Structure
    loss: float
    seconds: float
    bytes: int

    def to_json(self) -> dict[str, object]:
        """Return what reports say of it."""
        return {
            "kinds": {name: scheme.name for name, scheme in self.schemes.items()},
            "heads": [kept.tolist() for kept in self.keep.heads],
            "units": [kept.tolist() for kept in self.keep.units],
            "loss": self.loss,
            "seconds": self.seconds,
            "bytes": self.bytes,
        }


@dataclass
class Choices:
    """All options of a decoder.

    linears  by name; the head's, which is in no block, among them
    blocks   by "layers.i.attention" and "layers.i.ffn": the first option keeps everything
    """

    spec: DecoderSpec
    linears: dict[str, list[LinearOption]]
    blocks: dict[str, list[BlockOption]] = field(default_factory=dict)

    def plan(self, price: float, cost: str = "seconds") -> Plan:
        """The least loss + price * cost; `cost` is "seconds" or "bytes"."""
        schemes: dict[str, Scheme] = {}
        whole = Structure.of(self.spec)
        heads, units = list(whole.heads), list(whole.units)
        loss = seconds = size = 0.0

        def take(name: str, share: float) -> None:
            nonlocal loss, seconds, size
            option = self._best(name, price, cost)
            schemes[name] = option.scheme
            loss, seconds, size = (
                loss + share * option.loss, seconds + share * option.seconds, size + share * option.bytes
            )  # fmt: skip

        of_block: dict[str, list[str]] = {}
        for name in self.linears:
            of_block.setdefault(_block_of(name), []).append(name)
        for block, names in of_block.items():
            inside = 0.0
            for option in (self._best(name, price, cost) for name in names):
                inside += option.loss + price * getattr(option, cost)
            options = self.blocks.get(block)
            chosen = None if options is None else min(options, key=lambda o: o.loss + o.share * inside)
            share = 1.0 if chosen is None else chosen.share
            if chosen is not None:
                loss += chosen.loss
                layer = int(block.split(".")[1])
                (heads if block.endswith("attention") else units)[layer] = chosen.kept
            for name in names if share else ():
                take(name, share)
        return Plan(schemes, Structure(tuple(heads), tuple(units)), loss, seconds, round(size))

    def within(self, fits: Callable[[Plan], bool], cost: str = "seconds", cheapest: bool = False) -> Plan:
        """The plan at the largest price that `fits` (a limit on loss), or with `cheapest` at the smallest (on cost).

        `fits` must hold on one side of some price. Where it holds nowhere, the plan at that end.
        """
        low, high = PRICES
        ends = self.plan(low, cost), self.plan(high, cost)
        if fits(ends[0] if cheapest else ends[1]):
            return ends[0] if cheapest else ends[1]
        best = ends[1] if cheapest else ends[0]
        for _ in range(60):
            middle = (low * high) ** 0.5
            trial = self.plan(middle, cost)
            if fits(trial):
                best = trial
            if fits(trial) == cheapest:
                high = middle
            else:
                low = middle
        return best

    def _best(self, name: str, price: float, cost: str) -> LinearOption:
        return min(self.linears[name], key=lambda o: o.loss + price * float(getattr(o, cost)))


def _block_of(name: str) -> str:
    return name.rsplit(".", 1)[0]


# -- structures ---------------------------------------------------------------


def block_options(
    spec: DecoderSpec,
    weights: Mapping[str, np.ndarray],
    stats: Mapping[str, LinearStatistics],
    say: Callable[[str], None] | None = None,
    groups: int = GROUPS,
) -> dict[str, list[BlockOption]]:
    """The structures of every block with the second-order loss of what goes (`approxrt.pruning.obs.group_curve`).

    groups   of FFN units a layer
    """
    out = {}
    for i, layer in enumerate(spec.layers):
        if say:
            say(f"scoring blocks: {i + 1} of {len(spec.layers)} layers")
        for block, second in ((f"layers.{i}.attention", "output"), (f"layers.{i}.ffn", "down")):
            there = layer.has_attention if second == "output" else layer.has_ffn
            if not there:
                continue
            name = f"{block}.{second}"
            weight, weighted = weights[f"{name}.weight"], stats[name].weighted
            if second == "output":
                losses = group_curve(weight, weighted, np.ones(len(weight)), layer.head_dim)
                out[block] = list(_head_options(losses, layer.num_kv_heads))
            else:
                units = channel_groups(spec, layer.intermediate_size, groups)
                losses = group_curve(weight, weighted, np.ones(len(weight)), len(units[0]))
                out[block] = list(_unit_options(losses, units))
    return out


def _head_options(losses: np.ndarray, groups: int) -> Iterator[BlockOption]:
    """Yield, from `losses` f64[heads], for each number of heads a group and each number of groups, the best of them."""
    per = len(losses) // groups
    table = losses.reshape(groups, per)
    ranked = np.argsort(-table, axis=1, kind="stable")
    for count in range(per, 0, -1):
        inside = np.sort(ranked[:, :count], axis=1)
        kept = np.take_along_axis(table, inside, axis=1).sum(1)
        for number in range(groups, 0, -1):
            chosen = np.sort(np.argsort(-kept, kind="stable")[:number])
            heads = (chosen[:, None] * per + inside[chosen]).reshape(-1)
            yield BlockOption(heads, count * number / len(losses), float(losses.sum() - kept[chosen].sum()))
    yield BlockOption(np.arange(0), 0.0, float(losses.sum()))


def _unit_options(losses: np.ndarray, groups: Sequence[np.ndarray]) -> Iterator[BlockOption]:
    order = np.argsort(-losses, kind="stable")
    units = sum(len(group) for group in groups)
    for count in range(len(groups), -1, -1):
        kept = np.concatenate([np.arange(0), *(groups[g] for g in np.sort(order[:count]))]).astype(np.int64)
        yield BlockOption(kept, len(kept) / units, float(losses[order[count:]].sum()))


def with_measured_blocks(
    blocks: Mapping[str, list[BlockOption]], measured: Mapping[str, float]
) -> dict[str, list[BlockOption]]:
    """The same, where the loss of removing a whole block is the measured one, and those of parts follow in proportion.

    A block that is measured to do harm costs nothing to remove.
    """
    out = {}
    for name, options in blocks.items():
        out[name] = options
        if name in measured and options[-1].loss > 0:
            scale = max(0.0, measured[name]) / options[-1].loss
            out[name] = [BlockOption(o.kept, o.share, o.loss * scale) for o in options]
    return out
