"""Choose the next token from logits: greedily, or a draw from the distribution that the options leave.

In the order of transformers: repetition penalty (Keskar et al. 2019, arXiv 1909.05858, section 4.1), temperature, top-k
(Fan et al. 2018, arXiv 1805.04833), top-p (Holtzman et al. 2019, arXiv 1904.09751), min-p (Nguyen et al. 2024, arXiv
2407.01082). Of equal logits the least id comes first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.errors import InputError

LEAST_TEMPERATURE = 1e-6
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Sampling:
    """Say how the next token is chosen. Raises InputError naming the value that is out of range.

    temperature         0: the likeliest token; else logits are divided by it, or by 1e-6 where it is less: what is
                        below the likeliest may then have no probability, and tokens of exactly its logit share it
    top_k               draw from the k likeliest; 0: all
    top_p               draw from the fewest tokens that together have this probability, in (0, 1]
    min_p               draw from tokens with at least this share of the likeliest one's probability, in [0, 1)
    repetition_penalty  over 1: tokens that were there (prompt included) become less likely
    seed                the same seed, the same draws; None: new ones every time
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, self.temperature_ok, "a number from 0 (greedy) on")
        _number("top_p", self.top_p, lambda x: 0 < x <= 1, "over 0 and at most 1 (1 keeps every token)")
        _number("min_p", self.min_p, lambda x: 0 <= x < 1, "from 0 to below 1 (0 keeps every token)")
        _number("repetition_penalty", self.repetition_penalty, lambda x: 0 < x < math.inf, "over 0 (1 changes nothing)")
        if type(self.top_k) is not int or self.top_k < 0:
            raise InputError(f"top_k is {self.top_k!r}; it must be an integer from 0 on (0 keeps every token)")
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise InputError(f"seed is {self.seed!r}; it must be an integer from 0 on, or None")

    @staticmethod
    def temperature_ok(value: float) -> bool:
        return 0 <= value < math.inf


def _number(name: str, value: Any, ok: Any, what: str) -> None:
    # NaN fails every comparison.
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating) or not ok(_as_float(value)):
        raise InputError(f"{name} is {value!r}; it must be {what}")


def _as_float(value: int | float | np.floating) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer of hundreds of digits
        return math.inf


class Sampler:
    """Chooses one sequence's tokens, one after the other."""

    def __init__(self, options: Sampling) -> None:
        self.options = options
        self._random = np.random.default_rng(options.seed)

    def choose(self, logits: np.ndarray, seen: list[int]) -> int:
        """The next token's id; logits float32 [vocab], `seen` the ids so far."""
        options = self.options
        if options.repetition_penalty != 1.0 and seen:
            logits = logits.copy()
            ids = np.unique(np.asarray(seen))
            some, penalty = logits[ids].astype(np.float64), float(options.repetition_penalty)
            with np.errstate(over="ignore"):
                penalised = np.where(some > 0, some / penalty, some * penalty)
            logits[ids] = np.clip(penalised, -_LARGEST, _LARGEST)
        if options.temperature == 0:
            return int(np.argmax(logits))
        ids, probabilities = distribution(logits, options)
        # The draw is where a uniform number falls among the sums of what is left.
        sums = np.cumsum(probabilities)
        return int(ids[min(int(np.searchsorted(sums, self._random.random() * sums[-1], side="right")), len(ids) - 1)])


def distribution(logits: np.ndarray, options: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids, probabilities float64) that a draw has, likeliest first; they sum to 1. Temperature is over 0."""
    below = logits.astype(np.float64) - float(logits.max())
    with np.errstate(over="ignore"):  # what is infinitely far below has no weight
        weights = np.exp(below / max(float(options.temperature), LEAST_TEMPERATURE))
    count = min(options.top_k, len(weights)) if options.top_k else len(weights)
    if options.top_p < 1:
        ids = _nucleus(weights, count, options.top_p)
    else:
        ids = _largest(weights, count)
    kept = weights[ids]
    # Sorted, so what min-p leaves is a beginning; the likeliest's weight is 1.
    kept = kept[: max(1, int(np.searchsorted(-kept, -options.min_p, side="right")))] if options.min_p else kept
    return ids[: len(kept)], kept / kept.sum()


def _largest(weights: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest, largest first, ties by id."""
    if count < len(weights):
        # All that are as large as the last one are candidates; the stable sort then takes those of least id.
        least = np.partition(weights, len(weights) - count)[len(weights) - count]
        candidates = np.flatnonzero(weights >= least)
    else:
        candidates = np.arange(len(weights))
    return candidates[np.argsort(-weights[candidates], kind="stable")[:count]]


def _nucleus(weights: np.ndarray, count: int, top_p: float) -> np.ndarray:
    """Ids of the fewest largest weights (of the `count` largest) that have the share `top_p` of those."""
    total = weights.sum() if count == len(weights) else weights[_largest(weights, count)].sum()
    size = min(count, 64)
    while True:
        # Most distributions are narrow: a sort of all ids would take longer than anything else here.
        ids = _largest(weights, size)
        sums = np.cumsum(weights[ids])
        if sums[-1] >= top_p * total or size == count:
            return ids[: int(np.searchsorted(sums, top_p * total, side="left")) + 1]
        size = min(count, 8 * size)
