"""Make a decoder's weights from its statistics and a plan: pruned, refitted, rounded.

Rounded linears are kept by name and kind, so that a plan that differs from the last in a few of them is built in
seconds. `build_in_sequence` rounds each linear with the inputs that the rounded ones before it give.

A checkpoint may have grids of its own (`Own`). A linear that stays whole, or loses outputs, then stays what it is, to
the bit. One that loses inputs is refitted, and rounded to what is left of its grid; where that loses more than leaving
its weights alone, they are left alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from approxrt.artifact.memory import InMemory
from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.formats import TILE_K, TILE_N, LinearKind
from approxrt.artifact.storage.bsr import to_tiles
from approxrt.artifact.storage.groupwise import kind_of
from approxrt.planning.decoder_options import HEAD, DecoderOptions, schemes_of
from approxrt.planning.plan import Cost, Option, Plan
from approxrt.progress import Say
from approxrt.pruning.obs import tile_curve
from approxrt.pruning.reconstruct import refit_kept, remove_and_refit
from approxrt.pruning.second_order import LinearStatistics, predicted_loss
from approxrt.pruning.structure import Structure, selected, selections, shrunk_spec
from approxrt.quantization.calibration import Rounding, round_decoder
from approxrt.quantization.gptq import dequantized_linear, round_weights
from approxrt.quantization.grids import parts_of
from approxrt.quantization.rtn import quantize_rows
from approxrt.quantization.scheme import Scheme
from approxrt.significance.decoder_latency import DecoderLatency

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Own:
    """Grids that a checkpoint has: `parts` by linear, "embeddings.word" and, where it is tied, "head.out" as well.

    The decoder is untied for the search (`untied`): the head is a linear like others then. `keeps_table`: a head that
    leaves its grid gets a matrix of its own, and the table stays; else the two stay one.
    """

    parts: Mapping[str, Mapping[str, np.ndarray]]
    tied: bool
    keeps_table: bool

    def scheme(self, name: str) -> Scheme | None:
        """Return what the linear is."""
        return Scheme(kind_of(self.parts[name])) if name in self.parts else None


@dataclass(frozen=True)
class Pruned:
    """A decoder after a plan's structure was taken out: all f32; masks of tiles that its kinds keep.

    `grids`: what is left of a checkpoint's own, of linears whose weights are on it still or may be put on it again.
    """

    spec: DecoderSpec
    tensors: Tensors
    stats: Mapping[str, LinearStatistics]
    masks: Mapping[str, np.ndarray]
    grids: Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class _Rounded:
    kind: LinearKind
    parts: dict[str, np.ndarray]
    bias: np.ndarray | np.float32  # what it gains


class Builder:
    """See the module's text. `scores` of tiles by linear (`approxrt.pruning.obs`); empty: no kinds with tiles."""

    def __init__(
        self, spec: DecoderSpec, tensors: Tensors, stats: Mapping[str, LinearStatistics], own: Own | None = None
    ) -> None:
        self.spec, self.tensors, self.stats, self.own = spec, tensors, stats, own
        self.scores: dict[str, np.ndarray] = {}
        self._rounded: dict[tuple[str, Scheme], _Rounded] = {}

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

    def choices(
        self, latency: DecoderLatency, say: Say, enough: Callable[[], bool], cost: Cost = "ms"
    ) -> DecoderOptions:
        """The options of every linear. Dense kinds are rounded in earnest, kinds with tiles estimated by scores.

        enough   true when the time for this is over: the other linears are then judged by plain rounding
        cost     "ms" or "bytes": what takes no less of it than the checkpoint's own kind is no option
        """
        linears: dict[str, list[Option]] = {}
        known = [(name, linear) for name, linear in self.spec.linears() if name in self.stats]
        for place, (name, linear) in enumerate(known):
            n, k = linear.out_features, linear.in_features
            weight, noise = self.tensors[f"{name}.weight"], dict[LinearKind, float]()
            options: list[Option] = []
            for scheme in self.schemes(name):
                if scheme.sparse and name not in self.scores:
                    continue
                option = Option(scheme, 0.0, latency.ms(name, linear, scheme), scheme.bytes(n, k))
                if self.own is not None and options and getattr(option, cost) >= getattr(options[0], cost):
                    continue
                if scheme.format not in noise:
                    if self.own is not None and scheme == self.own.scheme(name):
                        noise[scheme.format] = 0.0
                    else:
                        parts = (
                            self._plain(name, scheme.format)
                            if enough()
                            else self._round(name, Scheme(scheme.format)).parts
                        )
                        rounded = dequantized_linear(parts, n, k)
                        noise[scheme.format] = predicted_loss(rounded - weight, self.stats[name])
                loss = noise[scheme.format]
                if scheme.sparse:
                    ordered = np.sort(self.scores[name].ravel())
                    loss = loss * scheme.density + float(ordered[: round((1 - scheme.density) * len(ordered))].sum())
                options.append(replace(option, loss=loss))
            linears[name] = options
            say(f"rounding {place + 1} of {len(known)}")
        return DecoderOptions(linears)

    def schemes(self, name: str) -> list[Scheme]:
        """Return what the linear may become."""
        return schemes_of(name, None if self.own is None else self.own.scheme(name) or Scheme("g8"))

    def prune(self, plan: Plan) -> Pruned:
        """The plan's structure and masks."""
        masks = {name: self._mask(name, scheme) for name, scheme in plan.schemes.items() if scheme.sparse}
        of_plan = [
            name for name, scheme in plan.schemes.items() if self.own is not None and scheme == self.own.scheme(name)
        ]
        grids = {name: dict(self.own.parts[name]) for name in of_plan if self.own is not None}
        if plan.keep.is_all_of(self.spec):
            return Pruned(self.spec, self.tensors, self.stats, masks, grids)
        chosen = selections(self.spec, plan.keep)
        for name in list(grids):
            if f"{name}.weight" in chosen:
                left = selected(grids.pop(name), chosen[f"{name}.weight"])
                grids |= {} if left is None else {name: left}
        for name in list(masks):
            selection = chosen.get(f"{name}.weight")
            if selection is not None:
                rows = selection.apply(self._elements(name))
                assert rows is not None
                masks[name] = _top(to_tiles(rows).sum(axis=(2, 3), dtype=np.float64), plan.schemes[name].density)
        spec, tensors, stats = remove_and_refit(self.spec, self.tensors, plan.keep, self.stats)
        for name, grid in grids.items():
            selection = chosen.get(f"{name}.weight")
            if selection is not None and selection.axis == 1 and selection.indices is not None:
                gone = np.setdiff1d(np.arange(self.tensors[f"{name}.weight"].shape[1]), selection.indices)
                mean = self.tensors[f"{name}.weight"][:, gone] @ self.stats[name].mean[gone]
                alone = self.tensors[f"{name}.bias"] + mean.astype(np.float32)
                _put_on_grid(name, tensors, grid, stats[name], plan.schemes[name].format, alone)
        return Pruned(spec, tensors, stats, masks, grids)

    def build(self, plan: Plan) -> InMemory:
        """The artifact's spec and tensors, each linear rounded by the statistics of the dense model."""
        return with_words(*self.linears(plan, self.prune(plan)), self.own)

    def linears(self, plan: Plan, pruned: Pruned) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
        """The same before the embedding table gets its form."""
        out, kinds = dict(pruned.tensors), dict[str, LinearKind]()
        for name, scheme in plan.schemes.items():
            weight = out.pop(f"{name}.weight")
            if name in pruned.grids:
                found = _Rounded(scheme.stored, dict(pruned.grids[name]), np.float32(0))
            elif weight is self.tensors.get(f"{name}.weight"):
                found = self._round(name, scheme)
            else:
                found = _round(weight, pruned.masks.get(name), pruned.stats[name], scheme.format)
            kinds[name] = found.kind
            out |= {f"{name}.{part}": array for part, array in found.parts.items()}
            out[f"{name}.bias"] = out[f"{name}.bias"] + found.bias
        return pruned.spec.with_linear_kinds(kinds), out

    def rounded(self, name: str, scheme: Scheme) -> np.ndarray:
        """Return what a linear of the whole decoder stands for in a kind, f32[N, K]."""
        return dequantized_linear(self._round(name, scheme).parts, *self.tensors[f"{name}.weight"].shape)

    def _round(self, name: str, scheme: Scheme) -> _Rounded:
        if (name, scheme) not in self._rounded:
            mask = self._mask(name, scheme) if scheme.sparse else None
            weight = self.tensors[f"{name}.weight"]
            self._rounded[name, scheme] = _round(weight, mask, self.stats[name], scheme.format)
        return self._rounded[name, scheme]

    def _plain(self, name: str, kind: LinearKind) -> dict[str, np.ndarray]:
        from approxrt.quantization.rtn import quantize_linear

        return quantize_linear(self.tensors[f"{name}.weight"], kind)[1]

    def _mask(self, name: str, scheme: Scheme) -> np.ndarray:
        return _top(self.scores[name], scheme.density)

    def _elements(self, name: str) -> np.ndarray:
        n, k = self.tensors[f"{name}.weight"].shape
        spread = np.repeat(np.repeat(self.scores[name] / (TILE_N * TILE_K), TILE_N, axis=0), TILE_K, axis=1)
        return spread[:n, :k]


def refitted(pruned: Pruned) -> Pruned:
    """Return it with linears that lose tiles refitted over those that stay; the others are zero."""
    out = dict(pruned.tensors)
    for name, mask in pruned.masks.items():
        out[f"{name}.weight"], more = refit_kept(out[f"{name}.weight"], mask, pruned.stats[name])
        out[f"{name}.bias"] = out[f"{name}.bias"] + more
    return replace(pruned, tensors=out)


def build_in_sequence(
    pruned: Pruned, plan: Plan, batch: torch.Tensor, own: Own | None, say: Say | None = None
) -> InMemory:
    """Build a decoder that was pruned and refitted, with linears of its grids as they are: see `round_decoder`."""
    kinds = {name: scheme.format for name, scheme in plan.schemes.items()}
    rounding = Rounding(kinds, pruned.masks, pruned.grids)
    return with_words(*round_decoder(pruned.spec, pruned.tensors, rounding, batch, say), own)


def untied(spec: DecoderSpec, tensors: Tensors) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """The same function with the head's matrix as a linear of its own; its array is the table's."""
    if not spec.tied_embeddings:
        return spec, dict(tensors)
    head = {"head.out.weight": tensors["embeddings.word.weight"], "head.out.bias": np.zeros(spec.vocab_size, "f4")}
    return dataclasses.replace(spec, tied_embeddings=False), dict(tensors) | head


def with_words(spec: DecoderSpec, tensors: Tensors, own: Own | None) -> InMemory:
    """The embedding table as the checkpoint has it, in int8 where that is float32; one with the head again where it
    was."""
    out = dict(tensors)
    words = out.pop("embeddings.word.weight")
    if own is None or "embeddings.word" not in own.parts:
        q, scale = quantize_rows(words)
        out |= {"embeddings.word.q": q, "embeddings.word.scale": scale}
        return InMemory(dataclasses.replace(spec, embedding_kind="s8"), out)
    table, head = dict(own.parts["embeddings.word"]), parts_of(HEAD, out)
    same = table.keys() == head.keys() and all(np.array_equal(array, head[part]) for part, array in table.items())
    if own.tied and (same or not own.keeps_table):
        table = head
        for name in (*(f"{HEAD}.{part}" for part in head), f"{HEAD}.bias"):
            del out[name]
        spec = dataclasses.replace(spec, tied_embeddings=True, head_kind="f32")
    out |= {f"embeddings.word.{part}": array for part, array in table.items()}
    return InMemory(dataclasses.replace(spec, embedding_kind=kind_of(table)), out)  # type: ignore[arg-type]


def _put_on_grid(
    name: str, tensors: dict[str, np.ndarray], grid: dict[str, np.ndarray], stats: LinearStatistics, kind: LinearKind,
    alone: np.ndarray,
) -> None:  # fmt: skip
    """A refitted linear's weights in `tensors` to `grid`, whose integers change; or as they were, with bias `alone`."""
    refit = tensors[f"{name}.weight"]
    left = dequantized_linear(grid, *refit.shape)
    rounded, _, parts = round_weights(refit, None, stats.moments, kind, grid=grid)
    change, shift = left - refit, alone - tensors[f"{name}.bias"]
    # About the refit, where the slope is nothing: 1/2 E[g^2 |change x + shift|^2].
    cross = float(shift @ (change @ stats.mean)) * stats.weight
    kept = predicted_loss(change, stats) + cross + 0.5 * stats.weight * float(shift @ shift)
    if kept <= predicted_loss(rounded - refit, stats):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = left, alone
    else:
        tensors[f"{name}.weight"] = rounded
        grid.update(parts)


def pruned_without_statistics(
    spec: DecoderSpec, tensors: Tensors, keep: Structure, weights: Tensors
) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """Return a decoder that was pruned before: (spec, tensors) with `weights` for all that lies in layers."""
    rest = {name: array for name, array in tensors.items() if not name.startswith("layers.")}
    return shrunk_spec(spec, keep), rest | dict(weights)


def _round(weight: np.ndarray, mask: np.ndarray | None, stats: LinearStatistics, kind: LinearKind) -> _Rounded:
    bias = np.zeros(len(weight), np.float32)
    if mask is not None:
        weight, bias = refit_kept(weight, mask, stats)
    _, stored, parts = round_weights(weight, mask, stats.moments, kind)
    return _Rounded(stored, parts, bias)


def _top(scores: np.ndarray, density: float) -> np.ndarray:
    """bool: the share `density` of the tiles that score highest, at least one."""
    count = max(1, scores.size - round((1 - density) * scores.size))
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)
