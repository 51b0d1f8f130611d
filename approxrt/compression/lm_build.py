"""From a decoder, its statistics and a plan to weights: cut, refitted, rounded.

Rounded linears are kept by name and kind, so that a plan that differs from the last in a few of them is built in
seconds. `build_in_sequence` rounds each linear with the inputs that the rounded ones before it give.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from approxrt.analysis.decoder_latency import DecoderLatency, InMemory
from approxrt.analysis.decoder_options import KINDS, Choices, Kind, LinearOption, Plan
from approxrt.analysis.obs import tile_curve
from approxrt.approx.bsr import to_tiles
from approxrt.approx.decoder_round import Statistics, predicted_loss, refit_kept, round_decoder
from approxrt.approx.decoder_structure import remove, selections, shrunk_spec
from approxrt.approx.gptq import dequantized_linear, round_weights
from approxrt.approx.quantize import quantize_rows
from approxrt.approx.structure import Structure
from approxrt.artifact.decoder_spec import DecoderSpec
from approxrt.artifact.spec import TILE_K, TILE_N, LinearKind

Tensors = Mapping[str, np.ndarray]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cut:
    """A decoder after a plan's structure was taken out: all f32; masks of tiles that its kinds keep."""

    spec: DecoderSpec
    tensors: Tensors
    stats: Mapping[str, Statistics]
    masks: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Rounded:
    kind: LinearKind
    parts: dict[str, np.ndarray]
    bias: np.ndarray  # what it gains


class Builder:
    """See the module's text. `scores` of tiles by linear (`approxrt.analysis.obs`); empty: no kinds with tiles."""

    def __init__(self, spec: DecoderSpec, tensors: Tensors, stats: Mapping[str, Statistics]) -> None:
        self.spec, self.tensors, self.stats = spec, tensors, stats
        self.scores: dict[str, np.ndarray] = {}
        self._rounded: dict[tuple[str, Kind], _Rounded] = {}

    def score(self, afford: Callable[[float], bool], say: Say) -> bool:
        """Second-order scores of all tiles; false where they are not had.

        afford   asked after the first layer with the share of all that is done: whether there is time for the rest
        """
        names = [name for name, _ in self.spec.linears() if name in self.stats and name != "head.out"]
        work = {name: self.tensors[f"{name}.weight"].shape for name in names}
        total = sum(n * k * k for n, k in work.values())
        found, done = {}, 0
        for place, name in enumerate(names):
            weight = self.tensors[f"{name}.weight"]
            found[name] = tile_curve(weight, self.stats[name].weighted, np.ones(len(weight), np.float32))
            done += weight.shape[0] * weight.shape[1] ** 2
            say(f"scoring tiles {place + 1} of {len(names)}")
            if not afford(done / total):
                return False
        self.scores = found
        return True

    def choices(self, latency: DecoderLatency, say: Say, enough: Callable[[], bool]) -> Choices:
        """The options of every linear. int8 and int4 are rounded in earnest, kinds with tiles estimated by scores.

        enough   true when the time for this is over: the other linears are then judged by plain rounding
        """
        linears: dict[str, list[LinearOption]] = {}
        known = [(name, linear) for name, linear in self.spec.linears() if name in self.stats]
        for place, (name, linear) in enumerate(known):
            n, k = linear.out_features, linear.in_features
            weight, options, noise = self.tensors[f"{name}.weight"], [], {}
            for kind in KINDS:
                if kind.sparse and name not in self.scores:
                    continue
                if kind.bits not in noise:
                    parts = self._plain(name, kind.bits) if enough() else self._round(name, Kind(kind.bits)).parts
                    noise[kind.bits] = predicted_loss(dequantized_linear(parts, n, k) - weight, self.stats[name])
                loss = noise[kind.bits]
                if kind.sparse:
                    ordered = np.sort(self.scores[name].ravel())
                    loss = loss * kind.density + float(ordered[: round((1 - kind.density) * len(ordered))].sum())
                options.append(LinearOption(kind, loss, latency.seconds(name, linear, kind), kind.bytes(n, k)))
            linears[name] = options
            say(f"rounding {place + 1} of {len(known)}")
        return Choices(self.spec, linears)

    def cut(self, plan: Plan) -> Cut:
        """The plan's structure and masks."""
        masks = {name: self._mask(name, kind) for name, kind in plan.kinds.items() if kind.sparse}
        if plan.keep.is_all_of(self.spec):
            return Cut(self.spec, self.tensors, self.stats, masks)
        chosen = selections(self.spec, plan.keep)
        for name in list(masks):
            selection = chosen.get(f"{name}.weight")
            if selection is not None:
                rows = selection.apply(self._elements(name))
                assert rows is not None
                masks[name] = _top(to_tiles(rows).sum(axis=(2, 3), dtype=np.float64), plan.kinds[name].density)
        spec, tensors, stats = remove(self.spec, self.tensors, plan.keep, self.stats)
        return Cut(spec, tensors, stats, masks)

    def build(self, plan: Plan) -> InMemory:
        """The artifact's spec and tensors, each linear rounded by the statistics of the dense model."""
        cut = self.cut(plan)
        out, kinds = dict(cut.tensors), {}
        for name, kind in plan.kinds.items():
            weight = out.pop(f"{name}.weight")
            if weight is self.tensors.get(f"{name}.weight"):
                found = self._round(name, kind)
            else:
                found = _round(weight, cut.masks.get(name), cut.stats[name], kind.bits)
            kinds[name] = found.kind
            out |= {f"{name}.{part}": array for part, array in found.parts.items()}
            out[f"{name}.bias"] = out[f"{name}.bias"] + found.bias
        return with_int8_words(cut.spec.with_linear_kinds(kinds), out)

    def _round(self, name: str, kind: Kind) -> _Rounded:
        if (name, kind) not in self._rounded:
            mask = self._mask(name, kind) if kind.sparse else None
            weight = self.tensors[f"{name}.weight"]
            self._rounded[name, kind] = _round(weight, mask, self.stats[name], kind.bits)
        return self._rounded[name, kind]

    def _plain(self, name: str, bits: int) -> dict[str, np.ndarray]:
        from approxrt.approx.quantize import quantize_linear

        return quantize_linear(self.tensors[f"{name}.weight"], bits)[1]

    def _mask(self, name: str, kind: Kind) -> np.ndarray:
        return _top(self.scores[name], kind.density)

    def _elements(self, name: str) -> np.ndarray:
        n, k = self.tensors[f"{name}.weight"].shape
        spread = np.repeat(np.repeat(self.scores[name] / (TILE_N * TILE_K), TILE_N, axis=0), TILE_K, axis=1)
        return spread[:n, :k]


def refitted(cut: Cut) -> dict[str, np.ndarray]:
    """The cut's tensors, where linears that lose tiles are refitted over those that stay; the others are zero."""
    out = dict(cut.tensors)
    for name, mask in cut.masks.items():
        out[f"{name}.weight"], more = refit_kept(out[f"{name}.weight"], mask, cut.stats[name])
        out[f"{name}.bias"] = out[f"{name}.bias"] + more
    return out


def build_in_sequence(
    spec: DecoderSpec,
    tensors: Tensors,
    masks: Mapping[str, np.ndarray],
    plan: Plan,
    batch: torch.Tensor,
    say: Say | None = None,
) -> InMemory:
    """Of a decoder that was cut and refitted: see `approxrt.approx.decoder_round.round_decoder`."""
    bits = {name: kind.bits for name, kind in plan.kinds.items()}
    return with_int8_words(*round_decoder(spec, tensors, batch, bits, masks, say))


def with_int8_words(spec: DecoderSpec, tensors: Tensors) -> InMemory:
    """The word table in int8."""
    out = dict(tensors)
    q, scale = quantize_rows(out.pop("embeddings.word.weight"))
    out |= {"embeddings.word.q": q, "embeddings.word.scale": scale}
    return InMemory(dataclasses.replace(spec, embedding_kind="s8"), out)


def cut_without_statistics(
    spec: DecoderSpec, tensors: Tensors, keep: Structure, weights: Tensors
) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """A decoder that was cut before: (spec, tensors) with `weights` for all that lies in layers."""
    rest = {name: array for name, array in tensors.items() if not name.startswith("layers.")}
    return shrunk_spec(spec, keep), rest | dict(weights)


def _round(weight: np.ndarray, mask: np.ndarray | None, stats: Statistics, bits: int) -> _Rounded:
    bias = np.zeros(len(weight), np.float32)
    if mask is not None:
        weight, bias = refit_kept(weight, mask, stats)
    _, kind, parts = round_weights(weight, mask, stats.moments, bits)
    return _Rounded(kind, parts, bias)


def _top(scores: np.ndarray, density: float) -> np.ndarray:
    """bool: the share `density` of the tiles that score highest, at least one."""
    count = max(1, scores.size - round((1 - density) * scores.size))
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)
