"""The records that a compression keeps on disk, one dataclass each, and their JSON.

What is read back is checked against the dataclass: a missing or unknown field is an error, never a guess.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cattrs
import numpy as np
from cattrs.preconf.json import make_converter

from approxrt.planning.plan import Plan
from approxrt.quantization.scheme import Scheme, scheme_named
from approxrt.significance.workload import Timing

Record = TypeVar("Record")


@dataclass(frozen=True)
class Baseline:
    """Hold what a model is before anything is done to it.

    metrics    of the float32 model on validation data, the one that selects first
    times      by engine; `fastest` is the one that speedups are over, and `ms` its median
    f32_bytes  of all weights in float32
    seen       the checkpoint may have learnt from the validation data; None where that says nothing
    """

    metrics: dict[str, float]
    times: dict[str, Timing]
    fastest: str
    ms: float
    f32_bytes: int
    seen: bool | None = None

    def to_report(self) -> dict[str, Any]:
        """Return what the report says of it."""
        data: dict[str, Any] = to_json(self)
        return data if self.seen is not None else {key: value for key, value in data.items() if key != "seen"}


class Origin(enum.Enum):
    """Say how a candidate's weights came about: converted as they were, with a previewed head besides, or by a plan."""

    CONVERTED = "converted"
    PREVIEWED = "previewed"
    PLANNED = "planned"


@dataclass(frozen=True)
class Preview:
    """A previewed head: nats a token that it costs, words refined, bytes, and bytes that take as long to read."""

    kl: float
    rows: float
    bytes: float
    cost: float
    agreement: float


@dataclass(frozen=True)
class Provenance:
    """Say where a candidate comes from: what later steps decide by, and what a reader of the report is told.

    plan        of a decoder
    steps       of training
    in_sequence rounded, linear after linear, with the inputs that the rounded ones before give
    title       in a line, for candidates without a plan
    facts       anything more that the report says
    """

    origin: Origin
    plan: Plan | None = None
    steps: int = 0
    in_sequence: bool = False
    title: str = ""
    preview: Preview | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """A built artifact and what was measured of it.

    drop      relative loss of the first metric against the baseline (negative: better)
    speedup   over the fastest float32 engine, padding removed, in turns in one process
    shrink    float32 weights over the whole folder
    """

    path: str
    metrics: dict[str, float]
    drop: float
    flip_rate: float | None
    bytes: int
    shrink: float
    ms: float
    speedup: float
    times: dict[str, Timing]
    provenance: Provenance

    def to_report(self) -> dict[str, Any]:
        """Return what the report and the card say of it."""
        data: dict[str, Any] = to_json(self)
        del data["provenance"]
        return data | {"about": about(self.provenance)}


def about(provenance: Provenance) -> dict[str, Any]:
    """Return a candidate's provenance as the report's readers know it."""
    out = dict(provenance.facts)
    if provenance.title:
        out["plan"] = provenance.title
    elif provenance.plan is not None:
        out |= {"plan": provenance.plan.to_report(), "trained": provenance.steps}
    if provenance.in_sequence:
        out["rounded"] = "in sequence"
    if provenance.preview is not None:
        out["preview"] = to_json(provenance.preview)
    return out


@dataclass(frozen=True)
class Clock:
    """Seconds that a run has taken, and the most that checking one candidate took."""

    seconds: float
    check: float


@dataclass(frozen=True)
class VocabularyChoice:
    """Say whether tokens without a row of the embedding table stand for others (else they are spelled with smaller
    ones)."""

    shared: bool


@dataclass(frozen=True)
class StepPlan:
    """Steps of training that the budget allows, seconds that one took, and steps of an epoch."""

    steps: int
    pace_s: float
    steps_per_epoch: int


@dataclass(frozen=True)
class EnsemblePlan:
    """Say how an ensemble is trained: steps of replaced-token detection, seconds until then, members and steps of
    each."""

    steps: int
    seconds: float
    members: int | None = None
    member_steps: int | None = None
    pace_s: float | None = None

    def to_report(self) -> dict[str, Any]:
        """Return what the report says of it."""
        return {key: value for key, value in to_json(self).items() if value is not None}


@dataclass(frozen=True)
class SignChoice:
    """Hold which layers match signs from how many tokens on, keeping how many keys; and what was found on the way."""

    layers: tuple[int, ...] = ()
    keep: int = 0
    sign_from: int = 0
    found: dict[str, Any] = field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """Tell whether queries and keys were turned on the way, also for layers that then stayed exact."""
        return bool(self.layers) or "calibration" in self.found

    def to_report(self) -> dict[str, Any]:
        """Return what the report says of it."""
        return {"layers": list(self.layers), "keep": self.keep, "sign_from": self.sign_from, **self.found}


@dataclass(frozen=True)
class Learnt:
    """Hold what a built plan says of predictions: the loss in nats and its share of the predicted one; cost
    likewise."""

    scale: float
    cost: float
    predicted_cost: float
    loss: float


@dataclass(frozen=True)
class DecodeTimes:
    """Seconds a byte of linears in layers, and of heads with all else, by the names of their schemes."""

    per_byte: dict[str, float]
    head: dict[str, float]


_CONVERTER = make_converter(forbid_extra_keys=True)
_CONVERTER.register_unstructure_hook(np.ndarray, lambda array: array.tolist())
_CONVERTER.register_structure_hook(np.ndarray, lambda data, _: np.array(data, np.int64))
_CONVERTER.register_unstructure_hook(Scheme, lambda scheme: scheme.name)
_CONVERTER.register_structure_hook(Scheme, lambda name, _: scheme_named(name))


def to_json(record: Any) -> Any:
    """Return a record as plain data."""
    return _CONVERTER.unstructure(record)


def from_json(data: Any, kind: type[Record]) -> Record:
    """Return the record that `data` stands for. Raises ValueError naming what does not fit."""
    try:
        return _CONVERTER.structure(data, kind)
    except cattrs.BaseValidationError as error:
        raise ValueError("; ".join(cattrs.transform_error(error))) from error
