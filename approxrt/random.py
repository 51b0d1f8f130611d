"""Name the streams of random numbers, so that no two steps of a run draw the same ones without knowing it.

A stream's numbers follow from the user's seed and the stream's own number. Some numbers are shared, by streams that
were named after results had been published with them; no run uses two of those for the same data.
"""

from __future__ import annotations

import enum

import numpy as np


class Stream(enum.Enum):
    """Hold what random numbers are for; the value is (the stream's number, its purpose)."""

    SPLIT = 3, "which examples validate"
    LIMIT = 5, "which training examples stay under --limit"
    FOLDS = 7, "how validation examples fall into folds"
    WORKLOAD = 11, "which texts are timed"
    STATISTICS = 13, "which texts statistics are taken of"
    GAINS = 13, "resamples that decide whether a removal is a gain"
    ANALYSIS = 17, "which texts an analysis uses"
    MEANS = 17, "which texts give the mean outputs that removals leave"
    RESPLIT = 19, "which texts of a batch are split into smaller tokens; by step"
    RANKING = 23, "which validation texts put removals in order"
    COMPARED_TEXTS = 29, "which validation texts two vocabularies are compared on"
    CERTAINTY = 29, "resamples that say how sure a gain is"
    AUGMENTATION = 31, "new pairs"
    HARD_ATTENTION = 31, "resamples that decide whether a layer takes hard attention"
    LONG_TEXTS = 31, "which texts sign matching is calibrated and judged with"
    THRESHOLD = 37, "resamples that decide whether a decision threshold moves"
    STARTING_POINT = 41, "resamples that decide what an ensemble's model begins with"

    @property
    def number(self) -> int:
        return self.value[0]


def generator(seed: int, stream: Stream, *more: int) -> np.random.Generator:
    """Return the stream's generator; `more` numbers (a step, a round) tell its parts apart."""
    return np.random.default_rng([seed, stream.number, *more])


def epoch_generator(seed: int, epoch: int) -> np.random.Generator:
    """Return the generator of the order in which an epoch's examples come."""
    return np.random.default_rng([seed, epoch])
