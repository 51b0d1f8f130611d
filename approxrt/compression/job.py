"""Everything that each step of one compression may use: the options, where results go, and whom to tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from approxrt.compression.options import CompressOptions
from approxrt.compression.records import Clock
from approxrt.compression.state import Work
from approxrt.progress import Progress
from approxrt.training.budget import Budget

Log = Callable[[str], None]

# Shares of the bar: the float32 model is measured until the one, blocks until the other.
BASELINE_ENDS, RECIPE_BEGINS = 0.05, 0.15


class Notes:
    """Sentences for the log now and for the report in the end; lasting ones also for a run that goes on after this."""

    def __init__(self, work: Work, log: Log) -> None:
        self.work, self.log = work, log
        self.lasting: list[str] = list(work.load("notes", list[str]) or [])
        self.all = list(self.lasting)

    def add(self, text: str, lasting: bool = True) -> None:
        """Log `text`, and keep it once."""
        self.log(text)
        if text in self.all:
            return
        self.all.append(text)
        if lasting:
            self.lasting.append(text)
            self.work.save("notes", self.lasting)


@dataclass(frozen=True)
class Job:
    """See the module's text. `threads` are those of engines and of torch, `device` is torch's."""

    options: CompressOptions
    out: Path
    work: Work
    budget: Budget
    notes: Notes
    progress: Progress
    log: Log
    threads: int
    device: torch.device

    @property
    def recipe_progress(self) -> Progress:
        """Return the recipe's part of the bar: what is measured before takes the first of it."""
        return self.progress.part(RECIPE_BEGINS, 1.0)

    @property
    def seed(self) -> int:
        return self.options.seed

    def say(self, text: str) -> None:
        """Tell what is going on, by the share of the budget that is spent, with the time left."""
        budget = self.budget
        left = max(0.0, budget.seconds - budget.elapsed())
        self.progress(min(1.0, budget.elapsed() / budget.seconds), f"{text} (at most {left / 60:.0f} min left)")

    def tick(self, text: str) -> None:
        """Do the same amid a step that may be left. Raises BudgetSpent."""
        self.budget.check()
        self.say(text)

    def save_clock(self, check: float = 0.0) -> None:
        """Keep the time that is spent, for a run that goes on; `check`: the most that checking a candidate took."""
        self.work.save("clock", Clock(self.budget.elapsed(), check))
