"""Sums over the tokens of a pass: what linears read, and the gradients of the loss at what they put out.

For a linear y = W x the loss grows by about 1/2 sum_r G_rr dw_r A dw_r^T a token when W changes by dW (K-FAC, Martens &
Grosse 2015, arXiv 1503.05671, with the diagonal of its second factor), with

    A = E[x x^T]        G_rr = E[(dL/dy_r)^2].

Where one G stands for all outputs, it may weight every token's own x instead: A = E[g^2 x x^T], g^2 the mean of
(dL/dy_r)^2 over r. A token that the loss does not depend on then does not count, however large its activations.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from approxrt.pruning.second_order import LinearStatistics

_NONE = np.zeros((0, 0), np.float32)

# (name, x [.., k]) -> f32[tokens, k] without padding
Rows = Callable[[str, Tensor], Tensor]


class LinearSums:
    """See the module's text. A forward pass calls `reads` and `writes`; gradients come with its backward pass.

    inputs    what counts of a linear's inputs, as the engine reads them
    outputs   the same of gradients at its outputs
    moments   also A, which takes 4 * in_features^2 bytes a linear; linears that read the same share it
    weighted  weight tokens by their gradients
    """

    def __init__(self, inputs: Rows, outputs: Rows, moments: bool = True, weighted: bool = False) -> None:
        self.inputs, self.outputs, self.with_moments, self.weighted = inputs, outputs, moments, weighted
        self._readers: dict[str, str] = {}  # which linear's sums of inputs are a linear's, too
        self._count: dict[str, int] = {}
        self._sum: dict[str, Tensor] = {}
        self._moment: dict[str, Tensor] = {}
        self._square: dict[str, Tensor] = {}
        self._weighted: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # sums of g^2 x x^T, of g^2 x, of g^2
        self._last: tuple[Tensor | None, Tensor | None, str] = (None, None, "")

    def reads(self, name: str, x: Tensor) -> None:
        """Take a linear's inputs."""
        previous, rows, owner = self._last
        if previous is not x or rows is None:
            # Query, key and value read the same: one array stands for all.
            rows, owner = self.inputs(name, x.detach()), name
            self._last = (x, rows, name)
            _add(self._sum, name, rows.sum(0, dtype=torch.float64))
            if self.with_moments:
                if name not in self._moment:
                    self._moment[name] = torch.zeros(rows.shape[1], rows.shape[1], device=rows.device)
                self._moment[name].addmm_(rows.T, rows)
        self._readers[name] = owner
        self._count[name] = self._count.get(name, 0) + len(rows)

    def writes(self, name: str, y: Tensor) -> None:
        """Take what the linear puts out, whose gradients will come."""
        rows = self._last[1]

        def take(gradient: Tensor) -> None:
            squares = self.outputs(name, gradient.detach()).square()
            if not self.weighted:
                _add(self._square, name, squares.sum(0, dtype=torch.float64))
                return
            assert rows is not None
            each = squares.mean(1, keepdim=True)
            by_gradient = rows * each.sqrt()
            if name not in self._weighted:
                width = rows.shape[1]
                zero = torch.zeros(width, width, device=rows.device)
                self._weighted[name] = (zero, zero.new_zeros(width), zero.new_zeros(()))
            moment, total, weight = self._weighted[name]
            moment.addmm_(by_gradient.T, by_gradient)
            total += (rows * each).sum(0)
            weight += each.sum()

        y.register_hook(take)

    def forget(self) -> None:
        """End a pass: what comes next reads other tensors."""
        self._last = (None, None, "")

    def statistics(self) -> dict[str, LinearStatistics]:
        """Return the means of the sums, by linear."""
        moments = {name: x.div_(self._count[name]).cpu().numpy() for name, x in self._moment.items()}
        out = {}
        for name, owner in self._readers.items():
            count = self._count[name]
            shared = moments.get(owner, _NONE)
            if self.weighted:
                moment, total, weight = self._weighted[name]
                mean = total / weight.clamp(min=1e-38)
                out[name] = LinearStatistics(
                    shared, _numpy(mean), weighted=_numpy(moment / count), weight=float(weight) / count
                )
            else:
                gradients = self._square[name] / count
                out[name] = LinearStatistics(shared, _numpy(self._sum[owner] / count), gradients=_numpy(gradients))
        return out


def _numpy(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.to("cpu", torch.float32).numpy()
    return array


def _add(sums: dict[str, Tensor], name: str, new: Tensor) -> None:
    sums[name] = sums[name] + new if name in sums else new
