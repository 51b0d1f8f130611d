"""Estimate what a change of a linear's weights costs, from second-order statistics of its inputs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from approxrt.quantization.gptq import output_error


def _none() -> np.ndarray:
    return np.zeros(0, np.float32)


@dataclass(frozen=True)
class LinearStatistics:
    """Hold means over tokens of one linear, x its inputs as the engine reads them, g the gradient at its outputs.

    moments    E[x x^T] f32[K, K]; linears that read the same inputs share the array; empty: not taken
    mean       f32[K]: E[x], or with `weighted` E[g^2 x] / E[g^2], the constant that stands for x at the least loss
    gradients  E[g_r^2] f32[N] by output; empty with `weighted`
    weighted   E[g^2 x x^T] f32[K, K], g^2 the mean over outputs; empty where tokens are not weighted
    weight     E[g^2]
    """

    moments: np.ndarray
    mean: np.ndarray
    gradients: np.ndarray = field(default_factory=_none)
    weighted: np.ndarray = field(default_factory=_none)
    weight: float = 0.0

    def select(self, inputs: np.ndarray) -> LinearStatistics:
        """Return those of some of the inputs."""
        square = np.ix_(inputs, inputs)
        moments, weighted = (array[square] if array.size else array for array in (self.moments, self.weighted))
        return LinearStatistics(moments, self.mean[inputs], self.gradients, weighted, self.weight)

    def select_outputs(self, outputs: np.ndarray) -> LinearStatistics:
        """Return those of some of the outputs."""
        return replace(self, gradients=self.gradients[outputs])


def predicted_loss(change: np.ndarray, stats: LinearStatistics) -> float:
    """Return the nats a token that a change f32[N, K] of a linear's weights adds."""
    return 0.5 * output_error(change, stats.weighted)
