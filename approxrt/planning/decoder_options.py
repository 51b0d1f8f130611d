"""What each part of a decoder may become, what it costs in loss and time, and which of it a plan takes.

A linear has a kind of `KINDS`: so many bits, so many of its 16x4 tiles. A block (attention or FFN of a layer) has a
structure: so many key-value groups with so many query heads each, so many units, or nothing at all. Losses are in nats
a token, from second-order statistics (`approxrt.pruning.second_order`); those of whole blocks may be
measured instead (`approxrt.significance.decoder_removal`).

Losses, seconds and bytes add up over blocks, so for any price on seconds (or bytes) each block can choose for itself;
a plan is found by bisecting the price (as SPDY, Frantar & Alistarh 2022, arXiv 2201.13096, but for its programme:
with hundreds of linears the steps between prices are small).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.formats import GROUP_KINDS, GROUP_WEIGHTS, TILE_K, TILE_N, LinearKind
from approxrt.artifact.storage.bsr import grid
from approxrt.pruning.obs import group_curve
from approxrt.pruning.second_order import LinearStatistics
from approxrt.pruning.structure import GROUPS, Structure, channel_groups
from approxrt.quantization.gptq import FORMS

HEAD = "head.out"
# Prices on seconds or bytes at which nothing and everything is worth it.
PRICES = (1e-12, 1e12)


@dataclass(frozen=True)
class Kind:
    """Bits of a weight, and the share of a linear's tiles that stay: below 1 it is stored by tiles.

    5, 6 and 9 bits stand for the kinds with float16 scales of 32 weights, g4, g6 and g8, as in
    `approxrt.quantization.rtn.quantize_linear`.
    """

    bits: int
    density: float = 1.0

    @property
    def form(self) -> LinearKind:
        """The artifact's name for it (`approxrt.artifact.spec.encoder`)."""
        return "bsr_s8" if self.sparse and self.bits == 8 else "bsr_s4" if self.sparse else FORMS[self.bits]

    @property
    def name(self) -> str:
        """As in "int8", "g4", "int4@50%"."""
        return (self.form if self.grouped else f"int{self.bits}") + (
            "" if self.density >= 1 else f"@{100 * self.density:g}%"
        )

    @property
    def grouped(self) -> bool:
        """Whether it has float16 scales of groups."""
        return FORMS[self.bits] in GROUP_KINDS

    @property
    def sparse(self) -> bool:
        return self.density < 1

    def bytes(self, n: int, k: int) -> int:
        """Of a linear with n outputs and k inputs in the artifact."""
        if self.grouped:
            groups = -(-k // GROUP_WEIGHTS)
            weights = {5: -(-k // 2) + 2 * groups, 6: -(-k // 2) + -(-k // 4), 9: k}[self.bits]
            return n * (weights + 2 * groups) + 4 * n
        if not self.sparse:
            weights = n * k if self.bits == 8 else n * (-(-k // 2) + -(-k // GROUP_WEIGHTS))
            return weights + 8 * n
        strips, columns = grid(n, k)
        tile = TILE_N * TILE_K * self.bits / 8 + 2 + (TILE_N / 8 if self.bits == 4 else 0)
        return round(strips * columns * self.density * tile) + 8 * n


# Every kind that a plan may choose from. A new one needs a line here and its rounding in `approxrt.quantization.gptq`.
KINDS = (Kind(8), Kind(5), Kind(4), Kind(8, 0.75), Kind(8, 0.5), Kind(4, 0.75), Kind(4, 0.5), Kind(6), Kind(9))
INT8 = KINDS[0]


def kind_named(name: str) -> Kind:
    """The kind of that name."""
    return {kind.name: kind for kind in KINDS}[name]


def kind_of_form(form: LinearKind) -> Kind:
    """The dense kind that the artifact calls so. Raises KeyError for f32 and for tiles."""
    return {kind.form: kind for kind in KINDS if not kind.sparse}[form]


def kinds_of(name: str, own: Kind | None) -> list[Kind]:
    """What the linear `name` may become; `own` is the kind with groups that its checkpoint has, None for floats.

    What takes more bytes than the checkpoint's own is no choice. Beside grids of a file only kinds with groups are:
    the others read activations on one scale a token, which outliers spoil in coordinates that are not rotated (four
    such linears of SmolLM2-135M in int4, each predicted to be free, cost 5 % of perplexity).
    """
    if own is None:
        return [kind for kind in KINDS if (name != HEAD if kind.sparse else kind.bits in (4, 5, 8))]
    sizes = 1, 128 * GROUP_WEIGHTS  # any that are large: bytes a weight decide
    return [own, *(kind for kind in (Kind(6), Kind(5)) if kind.bytes(*sizes) < own.bytes(*sizes))]


@dataclass(frozen=True)
class LinearOption:
    """A linear in one kind: nats a token that it adds, seconds a token, bytes."""

    kind: Kind
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
    """What is chosen. `kinds` of linears that stay; predicted nats and seconds a token, bytes of linears."""

    kinds: Mapping[str, Kind]
    keep: Structure
    loss: float
    seconds: float
    bytes: int

    def to_json(self) -> dict[str, object]:
        """Plain data, from which `from_json` makes the plan again."""
        return {
            "kinds": {name: kind.name for name, kind in self.kinds.items()},
            "heads": [kept.tolist() for kept in self.keep.heads],
            "units": [kept.tolist() for kept in self.keep.units],
            "loss": self.loss,
            "seconds": self.seconds,
            "bytes": self.bytes,
        }

    @staticmethod
    def from_json(data: Mapping[str, object]) -> Plan:
        """See `to_json`."""
        kinds, heads, units = data["kinds"], data["heads"], data["units"]
        assert isinstance(kinds, Mapping) and isinstance(heads, list) and isinstance(units, list)
        return Plan(
            {name: kind_named(kind) for name, kind in kinds.items()},
            Structure(
                tuple(np.array(kept, np.int64) for kept in heads), tuple(np.array(kept, np.int64) for kept in units)
            ),
            float(data["loss"]),  # type: ignore[arg-type]
            float(data["seconds"]),  # type: ignore[arg-type]
            int(data["bytes"]),  # type: ignore[call-overload]
        )


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
        kinds: dict[str, Kind] = {}
        whole = Structure.of(self.spec)
        heads, units = list(whole.heads), list(whole.units)
        loss = seconds = size = 0.0

        def take(name: str, share: float) -> None:
            nonlocal loss, seconds, size
            option = self._best(name, price, cost)
            kinds[name] = option.kind
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
        return Plan(kinds, Structure(tuple(heads), tuple(units)), loss, seconds, round(size))

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
    """Of `losses` f64[heads]: for each number of heads a group and each number of groups, the best of them."""
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
