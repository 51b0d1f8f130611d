"""Define what the driver must know of a model: the protocol that encoders and decoders implement, one class each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from approxrt.compression.job import Job
from approxrt.compression.records import Baseline, Candidate
from approxrt.significance.workload import Run, Timing

OWN_F32 = "approxrt-f32"


@dataclass(frozen=True)
class Opened:
    """An artifact that has answered: its metrics, the share of answers that changed, and a run to be timed."""

    metrics: dict[str, float]
    flip_rate: float | None
    run: Run


class Family(Protocol):
    """A kind of model with the data of one compression.

    rises        the metric that selects, which is the first, rises as a model gets worse
    parameters   weights of the checkpoint
    """

    job: Job
    rises: bool

    @property
    def task(self) -> str:
        """The task's name."""
        ...

    @property
    def parameters(self) -> int: ...

    @property
    def source(self) -> Mapping[str, Any]:
        """Return what the card says of the checkpoint."""
        ...

    @property
    def seen(self) -> bool | None:
        """Tell whether the checkpoint may have learnt from the validation data; None where nobody knows."""
        ...

    def baseline(self) -> Baseline:
        """Metrics and times of the float32 model; measured once in a run."""
        ...

    def evaluate_baseline(self) -> dict[str, float]:
        """Metrics of the float32 model on validation data."""
        ...

    def baseline_runs(self, names: tuple[str, ...] | None = None) -> dict[str, Run]:
        """Engines that run the float32 model, ready to be timed; all, or those of `names`."""
        ...

    def timed(self, runs: Mapping[str, Run]) -> dict[str, Timing]:
        """Times of runs in turns, each as long as the user would count it: of the workload, or of a token."""
        ...

    def fastest(self, times: Mapping[str, Timing]) -> str:
        """The engine that speedups are over."""
        ...

    def open(self, artifact: Path) -> Opened:
        """Load a built artifact and let it answer validation data."""
        ...

    def evaluate(self, artifact: Path, file: Path | None) -> dict[str, Any] | None:
        """Metrics of the float32 model and of an artifact on another file, for the report alone."""
        ...

    def notes(self, best: Candidate) -> list[str]:
        """Return what a reader of the report should know of the best candidate."""
        ...
