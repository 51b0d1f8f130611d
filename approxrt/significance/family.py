"""Define what an analysis must know of a model and its data: the protocol that encoders and decoders implement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from approxrt.artifact.spec.decoder import AnySpec
from approxrt.progress import Progress
from approxrt.significance.elements import Element
from approxrt.significance.removal import HeldOutModel
from approxrt.significance.statistics import Statistics
from approxrt.tasks.format import PLAIN, DataFormat

MAX_LENGTH, VAL_FRACTION = 128, 0.1


@dataclass(frozen=True)
class AnalysisOptions:
    """The options of `approxrt.significance.analyze.analyze`, with `threads` as a number."""

    samples: int = 1000
    seed: int = 0
    threads: int = 1
    max_length: int = MAX_LENGTH
    val_fraction: float = VAL_FRACTION
    data_format: DataFormat = PLAIN
    device: str = "auto"


@dataclass(frozen=True)
class PartRows:
    """Where a document has the parts of blocks of one sort, and under which name their [first, last] channel."""

    key: str
    channels: str | None = None


class AnalysisFamily(Protocol):
    """A kind of model, read with the data of one analysis."""

    @property
    def part_rows(self) -> Mapping[str, PartRows]:
        """Return where the document has parts, by `Element.part`."""
        ...

    @property
    def removals_end(self) -> float:
        """Return the share of the work that is done when removals are measured: the rest is what `more` does."""
        ...

    @property
    def spec(self) -> AnySpec: ...

    def facts(self) -> dict[str, Any]:
        """Return the document's "model" and "data"."""
        ...

    def statistics(self, progress: Progress) -> Statistics:
        """Collect what flows through every linear, over data that is not held out."""
        ...

    def held_out(self) -> HeldOutModel:
        """Return the model on the held-out data, from which blocks are taken out."""
        ...

    def held_out_for_parts(self) -> HeldOutModel:
        """Return the same on less data: parts of blocks are many."""
        ...

    def predictions(self, found: Statistics, elements: Sequence[Element]) -> dict[str, dict[str, float]]:
        """Return, by element, what statistics say of its removal: "second_order", and what else there is."""
        ...

    def more(self, found: Statistics, progress: Progress) -> dict[str, Any]:
        """Return the parts of the document that only this family has."""
        ...
