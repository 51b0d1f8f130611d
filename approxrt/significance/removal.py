"""Measure what the loss is without an element: it is taken out alone, and the model reads texts that are new to it.

This is the significance of Nagarajan et al. 2020 (arXiv 2010.03688): an attention or FFN block, a head, or a group of
FFN channels is insignificant if the loss without it is no larger. What is taken out leaves either its mean output, as
`approxrt.pruning.structure` builds it for real (for decoders: before the refit), or nothing at all (the paper's way). A
block keeps its residual path and its norm.

A removal changes nothing below it. So a run starts at the block that is changed, from inputs that are kept; what the
block's last linear reads is computed once for all of its parts, of which each then replaces its own share of it.
Families of models differ in how that is done: `approxrt.significance.encoder_removal`,
`approxrt.significance.decoder_removal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from approxrt.artifact.spec.decoder import AnySpec
from approxrt.progress import Progress
from approxrt.significance.elements import Element, elements_of

# E[x] of the inputs of "layers.i.attention.output" and "layers.i.ffn.down", f32[in_features]; None: remove to zero.
Means = Mapping[str, np.ndarray] | None


class HeldOutModel(Protocol):
    """A model on held-out texts, of which one element at a time can be taken out."""

    @property
    def any_spec(self) -> AnySpec: ...

    @property
    def metric_name(self) -> str: ...

    def move(self, stage: int) -> None:
        """Keep the inputs of the block at `stage`."""

    def outputs(self) -> np.ndarray:
        """Return what the model puts out, as it is, from the kept inputs on."""

    def outputs_without(self, elements: Sequence[Element], means: Means) -> list[np.ndarray]:
        """Return the same without each of the elements of the block whose inputs are kept, one at a time."""

    def losses(self, outputs: np.ndarray) -> np.ndarray:
        """Return f64[n], of every text (of a decoder: every token)."""

    def metric(self, outputs: np.ndarray) -> float:
        """Return what the task is judged by."""


@dataclass(frozen=True)
class Removal:
    """The model without one element, on n texts (of a decoder: tokens).

    loss      mean
    change    of the mean loss against the whole model; `stderr` is its standard error (paired)
    metric    the task's first (of a decoder: perplexity); `metric_change` against the whole model
    improved  share of texts whose loss falls
    """

    element: Element
    loss: float
    change: float
    stderr: float
    metric: float
    metric_change: float
    improved: float


@dataclass(frozen=True)
class Removals:
    """Hold what was measured: the whole model's mean loss, its standard error and metric, and every removal."""

    baseline: float
    stderr: float
    metric: float
    removals: list[Removal]


def measure_removals(
    held: HeldOutModel,
    means: Means,
    elements: Sequence[Element] | None = None,
    progress: Progress | None = None,
    enough: Callable[[], bool] | None = None,
) -> Removals:
    """Measure the model without each of `elements` (default: all) taken out alone.

    In the order of execution; where `enough`, which is asked after each block, may end it, in the order given.
    """
    progress = progress or Progress()
    chosen = list(elements_of(held.any_spec) if elements is None else elements)
    if enough is None:
        chosen.sort(key=lambda element: element.stage)
    held.move(0)
    whole = held.outputs()
    losses, metric = held.losses(whole), held.metric(whole)
    out: list[Removal] = []
    for stage, of_block in groupby(chosen, key=lambda element: element.stage):
        some = list(of_block)
        held.move(stage)
        for element, outputs in zip(some, held.outputs_without(some, means), strict=True):
            trial, other = held.losses(outputs), held.metric(outputs)
            change = trial - losses
            out.append(
                Removal(
                    element,
                    loss=float(trial.mean()),
                    change=float(change.mean()),
                    stderr=standard_error(change),
                    metric=other,
                    metric_change=other - metric,
                    improved=float((change < 0).mean()),
                )
            )
            progress.count(len(out), len(chosen), f"removing {element.name}")
        if enough is not None and enough():
            break
    return Removals(float(losses.mean()), standard_error(losses), metric, out)


def standard_error(values: np.ndarray) -> float:
    """Return it of the mean of `values`."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
