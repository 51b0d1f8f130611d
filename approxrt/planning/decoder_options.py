"""List what each part of a decoder may become, with its cost in loss and time, and choose a plan.

A linear has a scheme (`approxrt.quantization.scheme`): so many bits, so many of its 16x4 tiles. A block (attention or
FFN of a layer) has a structure: so many key-value groups with so many query heads each, so many channels, or nothing at
all. Losses are in nats a token, from second-order statistics (`approxrt.pruning.second_order`); those of whole blocks
may be measured instead (`approxrt.significance.decoder_removal`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.planning.allocate import Decision, Price
from approxrt.planning.plan import Option, StructureOption
from approxrt.pruning.obs import group_curve
from approxrt.pruning.second_order import LinearStatistics
from approxrt.pruning.structure import GROUPS, channel_groups
from approxrt.quantization.scheme import SCHEMES, Scheme

HEAD = "head.out"


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
class DecoderPart:
    """A block and its linears, or the head: what is kept of the block, and each linear's scheme, are chosen together.

    structures   the first keeps everything; None for the head, and where nothing may go
    """

    block: str
    linears: Mapping[str, Sequence[Option]]
    structures: Sequence[StructureOption] | None = None
    options: None = None

    def best(self, price: Price) -> Decision:
        """Return the structure and the schemes that are best at a price."""
        chosen = {name: min(options, key=price.of) for name, options in self.linears.items()}
        loss, share, kept, block = 0.0, 1.0, None, None
        if self.structures is not None:
            inside = sum(price.of(option) for option in chosen.values())
            structure = min(self.structures, key=lambda s: s.loss + s.share * inside)
            loss, share, kept = structure.loss, structure.share, structure.kept
            block = int(self.block.split(".")[1]), self.block.rpartition(".")[2]
        if not share:
            return Decision(loss, 0.0, 0.0, {}, block, kept)
        return Decision(
            loss + share * sum(option.loss for option in chosen.values()),
            share * sum(option.ms for option in chosen.values()),
            share * sum(option.bytes for option in chosen.values()),
            {name: option.scheme for name, option in chosen.items()},
            block,
            kept,
        )

    def decide(self, option: Option) -> Decision:
        """Its options cannot be listed, so none is ever chosen from a list."""
        raise TypeError(f"{self.block} decides by prices")


@dataclass
class DecoderOptions:
    """All options of a decoder.

    linears  by name; the head's, which is in no block, among them
    blocks   by "layers.i.attention" and "layers.i.ffn": the first option keeps everything
    """

    linears: dict[str, list[Option]]
    blocks: dict[str, list[StructureOption]] = field(default_factory=dict)

    def parts(self) -> list[DecoderPart]:
        """Return the parts, each linear in its block."""
        of_block: dict[str, dict[str, Sequence[Option]]] = {}
        for name, options in self.linears.items():
            of_block.setdefault(name.rsplit(".", 1)[0], {})[name] = options
        return [DecoderPart(block, linears, self.blocks.get(block)) for block, linears in of_block.items()]


# -- structures ---------------------------------------------------------------


def block_options(
    spec: DecoderSpec,
    weights: Mapping[str, np.ndarray],
    stats: Mapping[str, LinearStatistics],
    say: Callable[[str], None] | None = None,
    groups: int = GROUPS,
) -> dict[str, list[StructureOption]]:
    """The structures of every block with the second-order loss of what goes (`approxrt.pruning.obs.group_curve`).

    groups   of FFN channels a layer
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
                channels = channel_groups(spec, layer.intermediate_size, groups)
                losses = group_curve(weight, weighted, np.ones(len(weight)), len(channels[0]))
                out[block] = list(_channel_options(losses, channels))
    return out


def _head_options(losses: np.ndarray, groups: int) -> Iterator[StructureOption]:
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
            yield StructureOption(heads, count * number / len(losses), float(losses.sum() - kept[chosen].sum()))
    yield StructureOption(np.arange(0), 0.0, float(losses.sum()))


def _channel_options(losses: np.ndarray, groups: Sequence[np.ndarray]) -> Iterator[StructureOption]:
    order = np.argsort(-losses, kind="stable")
    channels = sum(len(group) for group in groups)
    for count in range(len(groups), -1, -1):
        kept = np.concatenate([np.arange(0), *(groups[g] for g in np.sort(order[:count]))]).astype(np.int64)
        yield StructureOption(kept, len(kept) / channels, float(losses[order[count:]].sum()))


def with_measured_blocks(
    blocks: Mapping[str, list[StructureOption]], measured: Mapping[str, float]
) -> dict[str, list[StructureOption]]:
    """The same, where the loss of removing a whole block is the measured one, and those of parts follow in proportion.

    A block that is measured to do harm costs nothing to remove.
    """
    out = {}
    for name, options in blocks.items():
        out[name] = options
        if name in measured and options[-1].loss > 0:
            scale = max(0.0, measured[name]) / options[-1].loss
            out[name] = [StructureOption(o.kept, o.share, o.loss * scale) for o in options]
    return out
