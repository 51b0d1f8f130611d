"""Hold what a benchmark measures: engines that take part, a row for each workload, and the whole result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from approxrt.peers.engines import Engine


@dataclass
class Contestant:
    """A loaded engine and what is known of it apart from its speed."""

    name: str
    family: str
    variant: str
    path: Path
    engine: Engine
    load: dict[str, float] = field(default_factory=dict)
    max_deviation: float | None = None
    agreement: float | None = None
    info: dict[str, Any] = field(default_factory=dict)


@dataclass
class Row:
    """One engine on one workload. Times in milliseconds for the whole batch (or the whole data set)."""

    engine: str
    workload: str
    batch: int
    seq: int | None
    repetitions: int
    median_ms: float
    p20_ms: float
    p80_ms: float
    texts_per_s: float
    speedup_of: dict[str, float] = field(default_factory=dict)
    limit_ms: float | None = None  # ours: the products' time at the peak measured beside, see `limits`
    peak_gmacs: dict[str, float] | None = None


@dataclass
class Result:
    """Everything that one benchmark found."""

    engines: list[dict[str, Any]]
    rows: list[Row]
    ratios: list[dict[str, Any]]
    left_out: dict[str, str]
    threads: int

    def to_json(self) -> dict[str, Any]:
        return {
            "threads": self.threads,
            "engines": self.engines,
            "left_out": self.left_out,
            "rows": [asdict(row) for row in self.rows],
            "ratios": self.ratios,
        }
