"""Seconds that a run may take, over all of its interrupts, and how they are shared among its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MEASURING = 0.2  # of the budget, at most, for baselines, block times and comparisons: the rest is for learning


class BudgetSpent(Exception):
    """The budget ended amid a step; what was measured before stays."""


class Budget:
    """`seconds` for everything; `reserve` of them is kept for what comes at the end."""

    def __init__(self, seconds: float, spent: float = 0.0) -> None:
        self.seconds = seconds
        self.reserve = 0.0
        self.measured = 0.0
        self._begun = time.monotonic() - spent

    def resume(self, spent: float) -> None:
        """Count `spent` seconds of an earlier process as this run's."""
        self._begun = time.monotonic() - spent

    def elapsed(self) -> float:
        """Return the seconds that the run has taken, those before an interrupt included."""
        return time.monotonic() - self._begun

    def left(self) -> float:
        """Return the seconds that are left before the reserve."""
        return self.seconds - self.elapsed() - self.reserve

    def check(self) -> None:
        """Raise BudgetSpent when all seconds are spent."""
        if self.elapsed() > self.seconds:
            raise BudgetSpent

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count the time within as that of measurements, which `MEASURING` of the budget is for."""
        begun = self.elapsed()
        try:
            yield
        finally:
            self.measured += self.elapsed() - begun

    def may_measure(self, seconds: float) -> bool:
        """Tell whether measurements of so many seconds more are within their share."""
        return self.measured + seconds <= MEASURING * self.seconds

    def share(self, fraction: float) -> Callable[[], bool]:
        """Return a function that is true once `fraction` of the budget is spent from now on, or nothing is left."""
        begun, allowed = self.elapsed(), fraction * self.seconds
        return lambda: self.elapsed() - begun > allowed or self.left() < 0
