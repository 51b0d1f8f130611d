"""Tell a caller how far a piece of work has come: one type for every step, and parts of it for the steps within.

A caller gives a function of (share of everything that is done, what is going on); a step that has several parts hands
each a part of its own share:

    progress = Progress(show)
    statistics(progress.part(0.0, 0.2))     # counts from 0 to 1 by itself
    scores(progress.part(0.2, 1.0))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

# (share of everything that is done in [0, 1], what is going on)
Show = Callable[[float, str], None]
# (what is going on), of steps whose share nobody knows; may raise to end the step
Say = Callable[[str], None]


def _nobody(share: float, text: str) -> None:
    return None


@dataclass(frozen=True)
class Progress:
    """The part of a caller's bar that lies between `begin` and `end`; without a function nobody is told."""

    show: Show = _nobody
    begin: float = 0.0
    end: float = 1.0

    @staticmethod
    def of(show: Show | None) -> Progress:
        """Return the whole bar of a caller's function, or one that nobody sees."""
        return Progress() if show is None else show if isinstance(show, Progress) else Progress(show)

    def __call__(self, share: float, text: str) -> None:
        """Say that `share` in [0, 1] of this part is done, and what comes now."""
        self.show(self.begin + (self.end - self.begin) * share, text)

    def count(self, done: int, total: int, text: str) -> None:
        """The same of `done` things of `total`."""
        self(done / max(1, total), text)

    def named(self, what: str) -> Progress:
        """Return the same bar, whose texts begin with `what`."""
        return Progress(lambda share, text: self(share, f"{what}: {text}"))

    def part(self, begin: float, end: float) -> Progress:
        """Return the part between two shares of this one."""
        return Progress(self, begin, end)
