"""Plans: what every part of a model becomes, the options that it is chosen from, and what each is predicted to cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from approxrt.pruning.structure import Structure
from approxrt.quantization.scheme import Scheme

# What a plan may save.
Cost = Literal["ms", "bytes"]


@dataclass(frozen=True)
class Option:
    """Hold what a linear, or all linears of a block, may become.

    scheme   how they are stored
    loss     what the task's loss gains: nats a text (encoders) or a token (decoders)
    ms       milliseconds, of the workload (encoders) or of a token (decoders)
    bytes    in the artifact
    size     of a block: heads or FFN channels that stay, 0 where it is removed; None for a linear
    """

    scheme: Scheme
    loss: float
    ms: float
    bytes: int
    size: int | None = None


@dataclass(frozen=True)
class StructureOption:
    """A block with some of its heads or channels: `kept` in their order; `share` of its linears' weights stays.

    `loss` is what removing the others adds.
    """

    kept: np.ndarray
    share: float
    loss: float


@dataclass(frozen=True)
class Limits:
    """Hold what a plan may cost, in the units of its options; None: anything."""

    ms: float | None = None
    bytes: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Plan:
    """Hold what is chosen: schemes of the linears that stay, the structure that is kept, and predicted totals."""

    schemes: Mapping[str, Scheme]
    keep: Structure
    loss: float
    ms: float
    bytes: int

    def to_report(self) -> dict[str, object]:
        """Return what reports say of it."""
        return {
            "kinds": {name: scheme.name for name, scheme in self.schemes.items()},
            "heads": [kept.tolist() for kept in self.keep.heads],
            "units": [kept.tolist() for kept in self.keep.channels],
            "loss": self.loss,
            "seconds": self.ms / 1e3,
            "bytes": self.bytes,
        }
