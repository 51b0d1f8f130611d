"""Estimate what a change of a linear's weights costs, from second-order statistics of its inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from approxrt.quantization.gptq import output_error


@dataclass(frozen=True)
class Statistics:
    """Hold second-order statistics of one linear, with x its inputs as the engine reads them (quantised a token, or in
    groups).

    weighted  E[g^2 x x^T] f32[K, K]
    moments   E[x x^T] f32[K, K]; linears that read the same inputs share the array
    mean      E[g^2 x] / E[g^2] f32[K]: the constant that stands for x at the least loss
    weight    E[g^2]
    """

    weighted: np.ndarray
    moments: np.ndarray
    mean: np.ndarray
    weight: float

    def select(self, inputs: np.ndarray) -> Statistics:
        """Return those of some of the inputs."""
        square = np.ix_(inputs, inputs)
        return Statistics(self.weighted[square], self.moments[square], self.mean[inputs], self.weight)


def predicted_loss(change: np.ndarray, stats: Statistics) -> float:
    """Nats a token that a change f32[N, K] of a linear's weights adds."""
    return 0.5 * output_error(change, stats.weighted)
