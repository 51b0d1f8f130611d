"""Choose an option for every part of a model, so that the predicted loss is least under limits of time and bytes.

Losses, milliseconds and bytes add up over parts. Two ways lead to the choice:

  - Where all options can be listed (an encoder's blocks), a dynamic programme over time is exact, with a price on bytes
    that is bisected (as SPDY, Frantar & Alistarh 2022, arXiv 2201.13096, and ZipLM, arXiv 2302.04089).
  - Where options nest (a decoder's block has a structure, and each of its linears a scheme), each part chooses for
    itself at a price, which is bisected: with hundreds of linears the steps between prices are small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from approxrt.artifact.spec.decoder import AnySpec
from approxrt.planning.plan import Cost, Limits, Option, Plan
from approxrt.pruning.structure import Structure
from approxrt.quantization.scheme import Scheme

BUCKETS = 2000  # of time in the dynamic programme
# Prices at which nothing and everything is worth it: of a millisecond and of a byte.
PRICES: dict[Cost, tuple[float, float]] = {"ms": (1e-15, 1e9), "bytes": (1e-12, 1e12)}
BISECTIONS = 60


@dataclass(frozen=True)
class Price:
    """Hold what a millisecond and a byte are worth, in units of the loss."""

    ms: float = 0.0
    bytes: float = 0.0

    def of(self, option: Option) -> float:
        """Return the loss and the price of what an option costs."""
        return option.loss + self.ms * option.ms + self.bytes * option.bytes


@dataclass(frozen=True)
class Decision:
    """Hold what one part becomes: its costs, the schemes of its linears, and of a block (layer, kind) what is kept."""

    loss: float
    ms: float
    bytes: float
    schemes: Mapping[str, Scheme]
    block: tuple[int, str] | None = None
    kept: np.ndarray | None = None


class Part(Protocol):
    """A part of a model that decides for itself, once prices are known; `options` are None where they nest."""

    @property
    def options(self) -> Sequence[Option] | None: ...

    def best(self, price: Price) -> Decision: ...

    def decide(self, option: Option) -> Decision: ...


def allocate(spec: AnySpec, parts: Sequence[Part], limits: Limits, saves: Cost = "ms") -> Plan | None:
    """Return the plan of least loss within the limits of time and bytes, or None where there is none.

    With a limit on the loss instead it is the plan that saves most of `saves`, "ms" or "bytes", within that. Where
    options nest one of the three limits counts, and where it cannot be kept the plan that comes nearest is returned.
    """
    listed = [part.options for part in parts]
    if limits.loss is None and all(options is not None for options in listed):
        choices = [_undominated(options) for options in listed if options is not None]
        chosen = _within(choices, limits)
        if chosen is None:
            return None
        return _plan(spec, [part.decide(option) for part, option in zip(parts, chosen, strict=True)])
    return _bisected(spec, parts, limits, saves)


def _plan(spec: AnySpec, decisions: Sequence[Decision]) -> Plan:
    whole = Structure.of(spec)
    heads, channels = list(whole.heads), list(whole.channels)
    schemes: dict[str, Scheme] = {}
    for decision in decisions:
        schemes |= decision.schemes
        if decision.block is not None and decision.kept is not None:
            layer, kind = decision.block
            (heads if kind == "attention" else channels)[layer] = decision.kept
    return Plan(
        schemes,
        Structure(tuple(heads), tuple(channels)),
        sum(decision.loss for decision in decisions),
        sum(decision.ms for decision in decisions),
        round(sum(decision.bytes for decision in decisions)),
    )


# -- where options nest ---------------------------------------------------------


def _bisected(spec: AnySpec, parts: Sequence[Part], limits: Limits, saves: Cost) -> Plan:
    """The plan at the largest price within a limit on the loss; at the smallest within one on what it `saves`."""

    def at(price: float) -> Plan:
        worth = Price(**{saves: price})
        return _plan(spec, [part.best(worth) for part in parts])

    cheapest = limits.loss is None
    limit = getattr(limits, saves) if cheapest else limits.loss
    assert limit is not None

    def fits(plan: Plan) -> bool:
        return bool((getattr(plan, saves) if cheapest else plan.loss) <= limit)

    low, high = PRICES[saves]
    ends = at(low), at(high)
    if fits(ends[0] if cheapest else ends[1]):
        return ends[0] if cheapest else ends[1]
    best = ends[1] if cheapest else ends[0]
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        trial = at(middle)
        if fits(trial):
            best = trial
        if fits(trial) == cheapest:
            high = middle
        else:
            low = middle
    return best


# -- where they can be listed -----------------------------------------------------


def _within(choices: Sequence[Sequence[Option]], limits: Limits) -> list[Option] | None:
    """One option a part: the least loss within both limits; None where none fits."""
    best = _cheapest(choices, limits.ms, 0.0)
    if best is None or limits.bytes is None or _bytes(best) <= limits.bytes:
        return best
    low, high = 0.0, 1e-12
    while (trial := _cheapest(choices, limits.ms, high)) is not None and _bytes(trial) > limits.bytes:
        low, high = high, high * 8
        if high > 1e12:
            return None
    best = trial
    for _ in range(24):
        middle = (low * high) ** 0.5 if low else high / 8
        trial = _cheapest(choices, limits.ms, middle)
        if trial is not None and _bytes(trial) <= limits.bytes:
            best, high = trial, middle
        else:
            low = middle
    return best


def _bytes(chosen: Sequence[Option]) -> int:
    return sum(option.bytes for option in chosen)


def _undominated(choices: Sequence[Option]) -> list[Option]:
    """Without options that another beats or equals in loss, time and bytes alike."""
    array = np.array([(o.loss, o.ms, o.bytes) for o in choices])
    keep = []
    for i, row in enumerate(array):
        better = (array <= row).all(axis=1) & (array < row).any(axis=1)
        if not better.any():
            keep.append(choices[i])
    return keep


def _cheapest(choices: Sequence[Sequence[Option]], ms: float | None, price: float) -> list[Option] | None:
    """Least loss + price * bytes within `ms`."""
    if ms is None:
        return [min(options, key=Price(bytes=price).of) for options in choices]
    unit = ms / BUCKETS
    value = np.zeros(BUCKETS + 1)
    picks: list[np.ndarray] = []
    for options in choices:
        new = np.full(BUCKETS + 1, np.inf)
        pick = np.zeros(BUCKETS + 1, np.int32)
        for index, option in enumerate(options):
            cost = max(0, int(np.ceil(option.ms / unit - 1e-9)))
            if cost > BUCKETS:
                continue
            trial = np.full(BUCKETS + 1, np.inf)
            trial[cost:] = value[: BUCKETS + 1 - cost] + option.loss + price * option.bytes
            better = trial < new
            new[better], pick[better] = trial[better], index
        value = new
        picks.append(pick)
    if not np.isfinite(value[-1]):
        return None
    chosen: list[Option] = []
    at = BUCKETS
    for options, pick in zip(reversed(choices), reversed(picks), strict=True):
        option = options[pick[at]]
        chosen.append(option)
        at -= max(0, int(np.ceil(option.ms / unit - 1e-9)))
    return chosen[::-1]
