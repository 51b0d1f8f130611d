"""Prune an encoder by second-order scores and refit it to the baseline, round after round, without training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from approxrt.artifact.spec.formats import LinearKind
from approxrt.artifact.storage.bsr import expand_mask
from approxrt.memory import release_memory
from approxrt.planning.encoder_options import Block
from approxrt.progress import Progress
from approxrt.pruning.obs import channel_errors
from approxrt.pruning.reconstruct import RefitOptions, refit
from approxrt.pruning.structure import Structure, remove, selections
from approxrt.quantization import build
from approxrt.quantization.gptq import round_weights
from approxrt.significance.scoring import element_scores, rounding_errors
from approxrt.significance.statistics import Statistics, collect
from approxrt.tasks.examples import Examples
from approxrt.torch_models.encoder import TorchEncoder


class PrunedEncoder:
    """A model that is pruned and refitted, never trained; see `approxrt.compression.rounds.Subject`.

    `kept` says which of the dense model's heads and FFN channels the model has; `formats` are those to choose from.
    """

    def __init__(
        self,
        model: TorchEncoder,
        dense: TorchEncoder,
        examples: Examples,
        seed: int = 0,
        formats: tuple[LinearKind, ...] = ("s8",),
    ) -> None:
        self.model, self.dense, self.examples, self.seed = model, dense, examples, seed
        self.formats = formats
        self.rounding: dict[tuple[str, LinearKind], float] = {}
        self.kept = Structure.of(dense.spec)
        self.scores: dict[str, np.ndarray] = {}
        self.means: dict[str, np.ndarray] = {}
        self.rounds = 0

    def score(self, reorder: bool = False, progress: Progress | None = None) -> None:
        """Take statistics of the model as it is, and score its tiles with them.

        With `reorder`, FFN channels come by falling error of their removal first, so that weak ones share tiles.
        """
        progress = progress or Progress()
        self.scores = {}  # those of the model as it was: no need to hold them beside the statistics
        release_memory()
        found = collect(self.model, self.examples, self.seed + self.rounds, progress=progress.part(0.0, 0.3))
        self.rounds += 1
        self.means, self.scores = dict(found.means), {}
        if reorder:
            self._reorder_channels(found)
        names, scored = self._linears(), progress.part(0.3, 1.0)
        for done, name in enumerate(names):
            scored.count(done, len(names), f"scoring tiles of {name}")
            self.scores |= element_scores(self.model, found, [name])
            if len(self.formats) > 1:
                self.rounding |= rounding_errors(self.model, found, [name], self.formats)
            del found.linears[name]  # as scores come, moments go: together they would be twice the model

    def _reorder_channels(self, found: Statistics) -> None:
        """The model's units and what was found of them."""
        spec, orders = self.model.spec, []
        for i, layer in enumerate(spec.layers):
            up, down = f"layers.{i}.ffn.up", f"layers.{i}.ffn.down"
            order = np.arange(0)
            if layer.intermediate_size:
                weight = self.model.weight(f"{down}.weight").detach().cpu().numpy()
                order = np.argsort(-channel_errors(weight, found.inputs[down], found.gradients[down]), kind="stable")
                found.linears[down] = found.linears[down].select(order)
                found.linears[up] = found.linears[up].select_outputs(order)
            orders.append(order)
        self.prune(Structure(Structure.of(spec).heads, tuple(orders)), {})
        self.means = dict(found.means)

    def element_scores(self) -> dict[str, np.ndarray]:
        """f32[out, in] by linear."""
        return self.scores

    def noise(self, block: Block) -> dict[LinearKind, float]:
        """Return what plain rounding costs a block by format, in the scores' unit."""
        return {form: sum(self.rounding[name, form] for name in block.linears) for form in self.formats}

    def prune(self, keep: Structure, masks: Mapping[str, np.ndarray]) -> None:
        """Take structure out for real, then set masks; biases take over what goes, on average."""
        old = self.model
        chosen = selections(old.spec, keep)
        spec, tensors, old_masks = remove(old.spec, old.tensors(), keep, self.means, old.masks)
        for name, selection in chosen.items():
            linear = name.removesuffix(".weight")
            if selection.indices is None:
                self.scores.pop(linear, None)
                self.means.pop(linear, None)
                continue
            if name.endswith(".weight") and linear in self.scores:
                self.scores[linear] = np.take(self.scores[linear], selection.indices, selection.axis)
            if selection.axis == 1:
                self.means[linear] = self.means[linear][selection.indices]
        # What is pruned stays pruned: a density that is rounded up does not bring zeros back.
        masks = {name: mask & old_masks[name] if name in old_masks else mask for name, mask in masks.items()}
        for name, mask in masks.items():
            weight = tensors[f"{name}.weight"]
            gone = np.where(expand_mask(mask, *weight.shape), 0, weight)
            tensors[f"{name}.bias"] = tensors[f"{name}.bias"] + gone @ self.means[name]
        # The model stays the same object: who prunes it may hold it.
        old.spec, old.weights, old.masks = spec, TorchEncoder(spec, tensors, device=old.device, copy=False).weights, {}
        old.set_masks(old_masks | dict(masks))
        self.kept = Structure(
            tuple(mine[kept] for mine, kept in zip(self.kept.heads, keep.heads, strict=True)),
            tuple(mine[kept] for mine, kept in zip(self.kept.channels, keep.channels, strict=True)),
        )

    def refit(self, progress: Progress | None = None) -> None:
        """All that is left follows the dense model again; scores were of the model as it was."""
        self.scores = {}
        release_memory()
        refit(self.model, self.dense, self.examples, RefitOptions(self.kept), progress)

    def round(self, kinds: Mapping[str, LinearKind]) -> dict[str, build.LinearTensors]:
        """GPTQ of the layers' linears in their kinds; the model takes the rounded weights and their biases."""
        self.scores = {}
        release_memory()
        found = collect(self.model, self.examples, self.seed + self.rounds)
        out: dict[str, build.LinearTensors] = {}
        for name in self._linears():
            parameter = self.model.weight(f"{name}.weight")
            weight, statistics = parameter.detach().cpu().numpy(), found.linears.pop(name)
            mean = statistics.mean
            mask = self.model.masks.get(name)
            if mask is not None and mask.all():
                mask = None
            # The bias takes over the mean error, so that only what varies is left to be small.
            covariance = statistics.moments - np.outer(mean, mean)
            rounded, kind, parts = round_weights(weight, mask, covariance, kinds.get(name, "s8"))
            out[name] = (kind, parts)
            with torch.no_grad():
                self.model.weight(f"{name}.bias").add_(torch.from_numpy((weight - rounded) @ mean).to(parameter.device))
                parameter.copy_(torch.from_numpy(rounded))
        return out

    def _linears(self) -> list[str]:
        return [name for name, _ in self.model.spec.linears() if name.startswith("layers.")]
