"""Removals that make a model better, and proof that they do: the paper's accuracy mode with a test that can be trusted.

The paper takes elements out in a fixed order and accepts what lowers the loss of one validation set. Tried often
enough, chance alone lowers it. Here candidates come in the order of their gain, and one is accepted only if the mean
loss, each time at the best temperature, falls in every fold of the held-out texts and a paired bootstrap over texts
(Efron 1979; Berg-Kirkpatrick et al. 2012) finds a fall in nearly all of its resamples: chance would pass one in
1 / (1 - confidence) of all elements that were looked at, so what is left to chance is divided by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from approxrt.progress import Progress
from approxrt.pruning.structure import Structure
from approxrt.random import Stream, generator
from approxrt.significance.elements import Element, without
from approxrt.significance.encoder_removal import HeldOutLoss, removed
from approxrt.significance.removal import Means, measure_removals
from approxrt.tasks.confusion import confusion, metric_of
from approxrt.torch_models.encoder import sample_losses

TEMPERATURES = 2.0 ** np.arange(-2, 5.25, 0.25)


@dataclass(frozen=True)
class Trial:
    """One candidate: change of the mean loss, in the worst fold, and the share of resamples in which it falls."""

    element: Element
    change: float
    worst_fold: float
    confidence: float
    accepted: bool


@dataclass(frozen=True)
class GainTest:
    """Say when a removal is a gain, and how long one is looked for.

    folds        disjoint rows of the held-out texts
    confidence   that no element at all is accepted by chance
    most         candidates that are tried
    patience     refusals in a row after which no more are tried
    """

    folds: Sequence[np.ndarray]
    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0
    most: int = 24
    patience: int = 8


def gains(
    held: HeldOutLoss,
    means: Means,
    test: GainTest,
    ranking: HeldOutLoss | None = None,
    progress: Progress | None = None,
) -> tuple[Structure, list[Trial]]:
    """Return (what stays, all trials in order) of the held model, which is left as it was.

    ranking      the same model with fewer texts, which give the order (each element takes a pass); default: all
    """
    spec = held.model.spec
    found = measure_removals(ranking or held, means, progress=progress).removals
    least = 1 - (1 - test.confidence) / max(1, len(found))
    ranked = sorted(found, key=lambda removal: removal.change)
    keep = Structure.of(spec)
    held.move(0)
    losses = calibrated_losses(held.outputs(), held.labels)
    bootstrap = Bootstrap(test.resamples, generator(test.seed, Stream.GAINS))
    trials, refused = list[Trial](), 0
    for removal in ranked:
        # Those that do harm alone come last; together with what is out already they hardly ever help.
        if removal.change >= 0 or len(trials) >= test.most or refused >= test.patience:
            break
        trial_keep = without(spec, keep, removal.element)
        if _same(trial_keep, keep):
            continue
        with removed(held.model, trial_keep, means):
            trial = calibrated_losses(held.outputs(), held.labels)
        difference = trial - losses
        worst = max(float(difference[fold].mean()) for fold in test.folds)
        sure = bootstrap.share(difference)
        accepted = worst < 0 and sure >= least
        if accepted:
            keep, losses = trial_keep, trial
        refused = 0 if accepted else refused + 1
        trials.append(Trial(removal.element, float(difference.mean()), worst, sure, accepted))
    return keep, trials


def calibrated_losses(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`sample_losses` of logits over the temperature that makes their mean least (Guo et al. 2017, arXiv 1706.04599);
    of scores as they are. A model that is only less sure than another, and ranks as it does, has no gain by this.
    """
    if labels.dtype.kind == "f":
        return sample_losses(outputs, labels)
    found = [sample_losses(outputs / t, labels) for t in TEMPERATURES]
    return min(found, key=lambda losses: float(losses.mean()))


def calibrated_loss(outputs: np.ndarray, labels: np.ndarray) -> float:
    """The mean of `calibrated_losses`."""
    return float(calibrated_losses(outputs, labels).mean())


@dataclass(frozen=True)
class Bootstrap:
    """Draws texts anew, with replacement, `resamples` times."""

    resamples: int
    rng: np.random.Generator

    def picks(self, count: int) -> np.ndarray:
        """Return i64[resamples, count] of rows of `count` texts."""
        return self.rng.integers(0, count, (self.resamples, count))

    def share(self, difference: np.ndarray) -> float:
        """Return the share of resamples whose mean difference is below zero."""
        return float(np.mean(difference[self.picks(len(difference))].mean(axis=1) < 0))


def metric_gain(
    metric: str, before: np.ndarray, after: np.ndarray, labels: np.ndarray, bootstrap: Bootstrap
) -> tuple[float, float]:
    """(gain of a metric, share of resamples of the texts with one) from logits [n, classes] to others.

    metric   one of `approxrt.tasks.confusion.metric_of`
    """
    answers = np.stack([before.argmax(1), after.argmax(1)])

    def gain(rows: np.ndarray) -> np.ndarray:
        found = metric_of(metric, confusion(answers[:, rows], labels[rows], before.shape[1]))
        return np.asarray(found[1] - found[0])

    return float(gain(np.arange(len(labels)))), float(np.mean(gain(bootstrap.picks(len(labels))) > 0))


def _same(a: Structure, b: Structure) -> bool:
    return all(
        len(x) == len(y)
        for mine, theirs in ((a.heads, b.heads), (a.channels, b.channels))
        for x, y in zip(mine, theirs, strict=True)
    )
