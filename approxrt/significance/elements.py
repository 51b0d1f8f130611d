"""Name what can be taken out of a model by itself: blocks, heads, groups of heads, groups of FFN channels.

An element is known by the inputs that it feeds: those of its block's last linear, the output projection or `down`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from approxrt.artifact.spec.decoder import AnySpec, DecoderSpec
from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.pruning.structure import GROUPS, AnyLayer, Structure, channel_groups, head_rows

# What parts are called, in names and documents. Of attention a "group" is a decoder's heads that share keys.
HEAD, KEY_VALUE_GROUP = "head", "group"
ENCODER_CHANNELS, DECODER_CHANNELS = "group", "units"


@dataclass(frozen=True)
class Element:
    """A block ("attention" or "ffn" of a layer), or with `part` the one number `index` of its parts of that sort."""

    layer: int
    kind: str
    part: str | None = None
    index: int = 0

    @property
    def stage(self) -> int:
        """Its block's place in the order of execution."""
        return 2 * self.layer + (self.kind == "ffn")

    @property
    def block(self) -> str:
        return f"layers.{self.layer}.{self.kind}"

    @property
    def name(self) -> str:
        """Return the name, as in "layers.3.ffn", "layers.3.attention.head.5", "layers.3.ffn.group.2"."""
        return self.block if self.part is None else f"{self.block}.{self.part}.{self.index}"

    @property
    def linear(self) -> str:
        """The linear that reads what the element puts out."""
        return f"layers.{self.layer}." + ("attention.output" if self.kind == "attention" else "ffn.down")

    def inputs(self, spec: AnySpec) -> np.ndarray:
        """bool over the inputs of `linear`: those that come from the element."""
        layer = spec.layers[self.layer]
        width = layer.num_heads * layer.head_dim if self.kind == "attention" else layer.intermediate_size
        gone = np.zeros(width, bool)
        if self.part is None:
            gone[:] = True
        elif self.kind == "ffn":
            gone[channel_parts(spec, width)[self.index]] = True
        else:
            per = layer.num_heads // layer.num_kv_heads if self.part == KEY_VALUE_GROUP else 1
            gone[head_rows(np.arange(self.index * per, (self.index + 1) * per), layer.head_dim)] = True
        return gone


def channel_parts(spec: AnySpec, channels: int) -> list[np.ndarray]:
    """Return the groups of a layer's FFN channels that are taken out together.

    An encoder's are `GROUPS` runs of about one size (one a channel, if they are fewer); a decoder's leave as
    `approxrt.pruning.structure.channel_groups` has them.
    """
    if isinstance(spec, DecoderSpec):
        return channel_groups(spec, channels)
    return np.array_split(np.arange(channels), min(GROUPS, channels)) if channels else []


def elements_of(spec: AnySpec, parts: bool = True) -> list[Element]:
    """Return the blocks that are there, in the order of execution, each followed by its parts."""
    out: list[Element] = []
    decoder = isinstance(spec, DecoderSpec)
    layers: tuple[AnyLayer, ...] = spec.layers
    for i, layer in enumerate(layers):
        if layer.num_heads:
            sorts = {HEAD: layer.num_heads}
            if decoder:
                # Where each head has keys and values of its own, it is its group.
                shared = layer.num_heads != layer.num_kv_heads
                sorts = {KEY_VALUE_GROUP: layer.num_kv_heads} | (sorts if shared else {})
            out.append(Element(i, "attention"))
            out += [Element(i, "attention", sort, n) for sort, count in sorts.items() for n in range(count) if parts]
        if layer.intermediate_size:
            sort = DECODER_CHANNELS if decoder else ENCODER_CHANNELS
            groups = len(channel_parts(spec, layer.intermediate_size))
            out.append(Element(i, "ffn"))
            out += [Element(i, "ffn", sort, n) for n in range(groups) if parts]
    return out


def without(spec: ModelSpec, keep: Structure, element: Element) -> Structure:
    """Return `keep` less one element; parts are numbered in the model of `spec`, whatever of it is gone already."""
    heads, channels, i = list(keep.heads), list(keep.channels), element.layer
    gone = np.flatnonzero(element.inputs(spec))
    if element.kind == "attention":
        heads[i] = np.setdiff1d(heads[i], np.unique(gone // spec.layers[i].head_dim))
    else:
        channels[i] = np.setdiff1d(channels[i], gone)
    return Structure(tuple(heads), tuple(channels))
