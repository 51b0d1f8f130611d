"""Keep a training within its share of the time that was left when it began, by shortening it."""

from __future__ import annotations

from approxrt.training.budget import Budget

MARGIN_S = 20.0  # for building and checking
LOOK_EVERY = 25  # steps


class Pace:
    """`share`: of what is left of the budget when the training begins."""

    def __init__(self, budget: Budget, share: float) -> None:
        self.budget, self.begun = budget, budget.elapsed()
        left = max(0.0, budget.seconds - self.begun)
        self.allowed = left * share - MARGIN_S
        self.first: int | None = None

    def fitting(self, step: int, steps: int, most: int) -> int:
        """Return how many steps can still be afforded, at most `most`; looked at now and then, else `steps`."""
        if self.first is None:
            self.first = step
        taken = step - self.first
        if taken < LOOK_EVERY or taken % LOOK_EVERY or step >= steps:
            return steps
        used = self.budget.elapsed() - self.begun
        # At least one step more: the schedule's end belongs to every run.
        affordable = step + max(1, int((self.allowed - used) / (used / taken)))
        return min(most, affordable)
