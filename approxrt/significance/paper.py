"""The algorithm of Nagarajan et al. 2020 (arXiv 2010.03688), as its public reference code has it.

From the top layer to the bottom, the FFN block before the attention block, each is taken out on trial. With `best` the
least loss so far (at first the whole model's) and n texts,

    it stays out if   loss < best   and   more than n/2 texts have loss_i <= loss0_i (the whole model's);  best = loss
    else, if          loss < 1.1 best,   each of its 12 heads or 12 groups of neurons is tried, by the same test.

The first version of the paper has thresholds that depend on what the user asks for; `Test` has them as a factor on
`best`. With a factor over 1 `best` only ever falls, so that what is allowed does not grow from one removal to the next.

Left out is the algorithm's first step, hard attention (each token keeps its 30 largest attention scores): it needs an
attention that selects keys. The reference code only masks; `approxrt.significance.removal.shrunk` builds the structure
that is found for real.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from approxrt.progress import Progress
from approxrt.pruning.structure import Structure
from approxrt.significance.elements import Element, elements_of, without
from approxrt.significance.encoder_removal import HeldOutLoss, removed
from approxrt.significance.removal import Means

DESCEND = 1.1


@dataclass(frozen=True)
class Test:
    """Say when an element may go; the defaults are the published ones.

    threshold   the loss must be under `threshold` times the best so far
    share       over this share of the texts must have a loss that is no larger than the whole model's; None: any may
    """

    __test__ = False  # no test of pytest's

    threshold: float = 1.0
    share: float | None = 0.5

    def accepts(self, loss: float, best: float, kept: float) -> bool:
        """`kept`: the share of the texts whose loss is no larger."""
        return loss < self.threshold * best and (self.share is None or kept > self.share)


@dataclass(frozen=True)
class Trial:
    """One test.

    loss    mean over the texts, with everything out that was accepted before
    best    what it was held against, before the threshold's factor
    share   of texts whose loss is no larger than the whole model's
    """

    element: Element
    loss: float
    best: float
    share: float
    accepted: bool


@dataclass(frozen=True)
class Found:
    """Hold what stays, the log in order, and the mean loss before and after."""

    keep: Structure
    trials: list[Trial]
    baseline_loss: float
    loss: float


def search(held: HeldOutLoss, means: Means = None, test: Test | None = None, progress: Progress | None = None) -> Found:
    """Run the algorithm on held-out texts; the model is left as it was.

    means   what is taken out leaves its mean output as a bias; None, as published: nothing
    """
    return _Search(held, means, test or Test(), progress).run()


class _Search:
    def __init__(self, held: HeldOutLoss, means: Means, test: Test, progress: Progress | None) -> None:
        self.held, self.means, self.test, self.progress = held, means, test, progress
        self.spec = held.model.spec
        self.keep = Structure.of(self.spec)
        self.trials: list[Trial] = []
        held.move(0)
        self.baseline = held.losses(held.outputs())
        self.best = self.loss = float(self.baseline.mean())

    def run(self) -> Found:
        elements = elements_of(self.spec)
        blocks = [element for element in reversed(elements) if element.part is None]
        for block in blocks:
            # Nothing below is out yet: the block's inputs are the whole model's.
            self.held.move(block.stage)
            trial = self.attempt(block, len(elements))
            if not trial.accepted and trial.loss < DESCEND * self.test.threshold * self.best:
                for part in elements:
                    if part.stage == block.stage and part.part is not None:
                        self.attempt(part, len(elements))
        return Found(self.keep, self.trials, float(self.baseline.mean()), self.loss)

    def attempt(self, element: Element, most: int) -> Trial:
        """Try to take one element out of what is left; it stays out if the test passes."""
        trial_keep = without(self.spec, self.keep, element)
        with removed(self.held.model, trial_keep, self.means):
            losses = self.held.losses(self.held.outputs())
        loss, share = float(losses.mean()), float(np.mean(losses <= self.baseline))
        trial = Trial(element, loss, self.best, share, self.test.accepts(loss, self.best, share))
        if trial.accepted:
            self.keep, self.loss, self.best = trial_keep, loss, min(self.best, loss)
        self.trials.append(trial)
        if self.progress:
            self.progress.count(len(self.trials), most, f"{element.name}: {'out' if trial.accepted else 'stays'}")
        return trial
