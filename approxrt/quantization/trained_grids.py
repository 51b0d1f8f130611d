"""Grids of groups in training: weights on lines w = d q + m, with d and m fixed or learnt.

The gradient reaches a weight as if it were not rounded (`approxrt.quantization.fake_quantize`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from approxrt.artifact.spec.formats import GROUP_WEIGHTS
from approxrt.quantization.groupwise import quantize_groups4

CHANGE = "_change"  # how names of what is trained of a grid end


class GroupGrid:
    """Hold a matrix's grid of groups in training: w -> d q + m, q the nearest of its integers.

    d and m are float16, d0 (1 + a) and m0 + d0 b with a and b trained from 0 (`changes`); g6's m is -32 d and g8's 0.
    """

    def __init__(
        self, parts: Mapping[str, np.ndarray], limits: tuple[int, int], device: str | torch.device = "cpu"
    ) -> None:
        self.first, self.limits = dict(parts), limits
        self.scale = torch.from_numpy(parts["group_scale"].astype(np.float32)).to(device)
        self.changes = {f"scale{CHANGE}": torch.zeros_like(self.scale).requires_grad_()}
        self.offset = None
        if "group_offset" in parts:
            self.offset = torch.from_numpy(parts["group_offset"].astype(np.float32)).to(device)
            self.changes[f"offset{CHANGE}"] = torch.zeros_like(self.scale).requires_grad_()

    def _line(self) -> tuple[Tensor, Tensor]:
        """Return (d, m) f32[n, groups], values of float16."""
        d = _half(self.scale * (1 + self.changes[f"scale{CHANGE}"]))
        if self.offset is None:
            return d, d * (-32.0 if self.limits[0] == 0 else 0.0)
        return d, _half(self.offset + self.scale * self.changes[f"offset{CHANGE}"])

    def __call__(self, weight: Tensor) -> Tensor:
        """Return f32[n, k] on the grid; gradients reach weights as they are, scales and offsets with q fixed."""
        k = weight.shape[1]
        d, m = (line[..., None] for line in self._line())
        groups = functional.pad(weight, (0, -k % GROUP_WEIGHTS)).unflatten(1, (-1, GROUP_WEIGHTS))
        with torch.no_grad():
            q = torch.round((groups - m) / torch.where(d == 0, 1.0, d)).clamp_(*self.limits)
        return torch.addcmul(m + (groups - groups.detach()), q, d).flatten(1)[:, :k]

    def parts(self) -> dict[str, np.ndarray]:
        """Return the parts with the scales and offsets that were learnt, and the first integers."""
        with torch.no_grad():
            d, m = (line.cpu().numpy().astype(np.float16) for line in self._line())
        return self.first | {"group_scale": d} | ({} if self.offset is None else {"group_offset": m})


def _half(x: Tensor) -> Tensor:
    """Round to float16; the gradient passes, in float32."""
    return x + (x.detach().half().float() - x.detach())


def group_lines(weight: np.ndarray) -> tuple[Tensor, Tensor]:
    """Return (scale, offset) f32[n, k] of each weight of f32[n, k] in kind g4 (`approxrt.quantization.groupwise`)."""
    parts = quantize_groups4(weight)
    scale, offset = (
        np.repeat(parts[part].astype(np.float32), GROUP_WEIGHTS, axis=1)[:, : weight.shape[1]]
        for part in ("group_scale", "group_offset")
    )
    return torch.from_numpy(np.ascontiguousarray(scale)), torch.from_numpy(np.ascontiguousarray(offset))


def on_lines(weight: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Return f32[n, k] at the nearest of the sixteen points of its group's line; the gradient passes unchanged."""
    with torch.no_grad():
        q = torch.round((weight - offset) / torch.where(scale == 0, 1.0, scale)).clamp_(0, 15)
        change = q * scale + offset - weight
    return weight + change
