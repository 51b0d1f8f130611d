"""Hold what a user asks of a compression, and refuse what makes no sense."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from approxrt.errors import InputError
from approxrt.tasks.format import PLAIN, DataFormat, check_format

OBJECTIVES = ("speed", "size", "accuracy")
RECIPES = ("train", "one-shot")
TARGETS = ("cpu", "cuda")
METHODS = ("ours", "magnitude", "paper")


@dataclass(frozen=True)
class CompressOptions:
    """See `approxrt compress --help` for what each means to a user.

    speedup       times faster than the fastest float32 engine at hand, padding removed; None: no limit on time
    shrink        times smaller than the float32 weights, the artifact's whole folder counted; None: no limit on size
    max_drop      largest loss of the task's first metric, as a share of the dense model's, on validation data
    budget        seconds that everything may take
    recipe        "train" or "one-shot" (no training: a few minutes, a larger loss)
    target        "cpu": tiles of 16x4 wherever they pay; "cuda": structures only, tiles would not suit tensor cores
    vocabulary    "full" or "task" (only tokens that the training texts use); None: "task" if a shrink asks for it
    device        where torch learns and takes statistics: "auto" (a GPU where there is one), "cpu", "cuda"; times are
                  always those of the target
    data_format   how the data files are laid out, where otherwise than their task's own
    method        "ours", or a baseline to compare with: "magnitude" (one-shot), "paper" (Nagarajan et al. 2020)
    """

    objective: tuple[str, ...] = ("speed",)
    speedup: float | None = None
    shrink: float | None = None
    max_drop: float = 0.005
    budget: float = 1800.0
    recipe: str = "train"
    target: str = "cpu"
    method: str = "ours"
    vocabulary: str | None = None
    seed: int = 0
    max_length: int = 128
    val_fraction: float = 0.1
    limit: int | None = None
    epochs: float | None = None
    lr: float = 1e-4
    batch_size: int = 32
    threads: int | None = None
    device: str = "auto"
    save_seconds: float = 120.0
    data_format: DataFormat = PLAIN

    def check(self) -> None:
        """Raise InputError for values that cannot work or that exclude each other."""
        for name, value, allowed in (
            ("recipe", self.recipe, RECIPES),
            ("target", self.target, TARGETS),
            ("method", self.method, METHODS),
        ):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")
        if not self.objective or any(o not in OBJECTIVES for o in self.objective):
            shown = ",".join(self.objective) or "empty"
            raise InputError(
                f"objective is {shown}; it must be one of {', '.join(OBJECTIVES)}, or some joined by commas"
            )
        for name in ("speedup", "shrink"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 1):
                raise InputError(f"{name} is {value}; it must be a number of at least 1 (4 means four times)")
        if not (math.isfinite(self.max_drop) and 0 <= self.max_drop < 1):
            raise InputError(f"max_drop is {self.max_drop}; it must lie between 0 and 1 (0.005 means 0.5 %)")
        if not (math.isfinite(self.budget) and self.budget >= 10):
            raise InputError(f"budget is {self.budget} seconds; it must be at least 10 s")
        if not 0 < self.val_fraction < 1:
            raise InputError(f"val_fraction is {self.val_fraction}; it must lie between 0 and 1")
        if self.limit is not None and self.limit < 20:
            raise InputError(f"limit is {self.limit}; it must be at least 20 examples")
        if self.epochs is not None and not self.epochs > 0:
            raise InputError(f"epochs is {self.epochs}; it must be over 0")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr is {self.lr}; it must be a number over 0 (1e-4 is usual)")
        for name in ("max_length", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1")
        check_format(self.data_format)
        self._check_constraints()

    def _check_constraints(self) -> None:
        if self.vocabulary not in (None, "full", "task"):
            raise InputError(f"vocabulary is {self.vocabulary!r}; it must be full or task")
        if "accuracy" in self.objective and (self.wanted_speedup or 1) > 1.5:
            raise InputError(
                f"objective accuracy and speedup {self.speedup} exclude each other: more accurate than the dense model "
                "and much faster is two compressions; ask for speed with a --max-drop"
            )
        if self.recipe == "one-shot" and "accuracy" in self.objective and self.method != "paper":
            raise InputError("objective accuracy needs training: recipe one-shot excludes it")
        if self.target == "cuda" and self.recipe == "one-shot" and self.shrink is not None and self.shrink > 8:
            raise InputError(f"shrink {self.shrink} for target cuda needs training: use recipe train")
        if self.method != "ours" and self.recipe != "one-shot":
            raise InputError(f"method {self.method} is a baseline without training: use recipe one-shot")

    @property
    def wanted_speedup(self) -> float | None:
        """The speedup that is asked for; 4 for objective speed without a number."""
        if self.speedup is None and "speed" in self.objective:
            return 4.0
        return self.speedup

    @property
    def wanted_shrink(self) -> float | None:
        """The same for size; 10 for objective size without a number."""
        if self.shrink is None and "size" in self.objective:
            return 10.0
        return self.shrink

    def identity(self) -> dict[str, Any]:
        """Return what must be the same for a resumed run to be the same run."""
        data = dataclasses.asdict(self)
        for name in ("save_seconds", "budget", "threads", "device"):
            data.pop(name)
        if self.data_format == PLAIN:
            data.pop("data_format")  # runs from before there was a choice go on
        return {**data, "objective": list(self.objective)}


def parse_drop(text: str) -> float:
    """A share: 0.5% or 0.005 is 0.005. Raises InputError."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*(%?)\s*", text)
    try:
        value = float(match.group(1)) if match else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"max-drop is {text!r}; write a share such as 0.5% or 0.005")
    return value / 100 if match and match.group(2) else value


def parse_duration(text: str) -> float:
    """Seconds of 90s, 30m, 2h or a plain number. Raises InputError."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([smh]?)\s*", text)
    try:
        value = float(match.group(1)) if match else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"budget is {text!r}; write a time such as 90s, 30m or 2h")
    assert match is not None
    return value * {"": 1, "s": 1, "m": 60, "h": 3600}[match.group(2)]


def options_from(objective: str, options: CompressOptions | None, given: dict[str, Any]) -> CompressOptions:
    """Return `options`, or those of an objective and of `given` fields. Raises InputError for both at once."""
    known = {field.name: field.default for field in dataclasses.fields(CompressOptions)}
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise InputError(f"unknown options: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if not isinstance(objective, str):
        raise InputError(f"objective is {objective!r}; it must be a string: {', '.join(OBJECTIVES)}, joined by commas")
    if options is None:
        return CompressOptions(objective=tuple(o.strip() for o in objective.split(",")), **given)
    twice = sorted(given) + (["objective"] if objective != "speed" else [])
    if twice:
        raise InputError(
            f"options is given, and beside it {', '.join(twice)}: say everything in CompressOptions, or nothing"
        )
    return options
