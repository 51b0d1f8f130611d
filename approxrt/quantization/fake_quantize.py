"""Quantisation as training sees it: the engine's int8 and int4 arithmetic in float, with straight-through gradients.

Activations per token, weights per output channel (int8) or with the artifact's group scales (int4), rounded as
`approxrt.quantization.rtn` and the engine round them; the gradient passes as if nothing had been rounded (Bengio et al.
2013, arXiv 1308.3432; Q8BERT, Zafrir et al. 2019, arXiv 1910.06188).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from approxrt.artifact.spec.formats import GROUP_WEIGHTS, LinearKind
from approxrt.artifact.storage.bsr import bsr_to_dense, dense_to_bsr
from approxrt.artifact.storage.int4 import tile_groups
from approxrt.quantization.int4 import quantize_rows4, quantize_tiles4
from approxrt.torch_models.encoder import TorchEncoder

MAX_SHIFT = 7  # of a group of activations; runtime/group_reference.py
REFRESH = 50  # steps between searches of int4 scales, which a weight hardly leaves meanwhile


class _Straight(torch.autograd.Function):
    """Forward: the second argument. Backward: the gradient goes to the first."""

    @staticmethod
    def forward(ctx: object, x: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


def quantize_activations(x: Tensor) -> Tensor:
    """Rows of x (last axis) on the int8 grid of their own largest magnitude."""
    with torch.no_grad():
        peak = x.abs().amax(dim=-1, keepdim=True)
        scale = peak.clamp(min=1e-30) / 127
        rounded = torch.round(x / scale).clamp_(-127, 127).mul_(scale)
    result: Tensor = _Straight.apply(x, rounded)
    return result


def quantize_activations_in_groups(x: Tensor) -> Tensor:
    """Rows of x (last axis) as linears of kinds g4, g6 and g8 read them: see `groups_of_activations`."""
    with torch.no_grad():
        rounded = groups_of_activations(x)
    result: Tensor = _Straight.apply(x, rounded)
    return result


def groups_of_activations(x: Tensor) -> Tensor:
    """f32[..., K]: int8 with a scale a row and a power of two for 32 of it (csrc/args.h; `runtime.group_reference`)."""
    k = x.shape[-1]
    groups = functional.pad(x.float(), (0, -k % GROUP_WEIGHTS)).unflatten(-1, (-1, GROUP_WEIGHTS))
    peaks = groups.abs().amax(-1)
    most = peaks.amax(-1, keepdim=True)
    # Exponents as the engine takes them: of the difference of the bits.
    e = ((most.view(torch.int32) - peaks.view(torch.int32)) >> 23).clamp_(max=MAX_SHIFT)
    step = (most.clamp(min=1e-30) / 127 * torch.exp2(-e.float()))[..., None]
    return torch.round(groups / step).clamp_(-127, 127).mul_(step).flatten(-2)[..., :k]


def quantize_weight8(weight: Tensor) -> Tensor:
    """Rows of f32[n, k] on the int8 grid of their own largest magnitude."""
    with torch.no_grad():
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / 127
        rounded = torch.round(weight / scale).clamp_(-127, 127).mul_(scale)
    result: Tensor = _Straight.apply(weight, rounded)
    return result


def quantize_weight4(weight: Tensor, step: Tensor) -> Tensor:
    """f32[n, k] on the int4 grid of `step` f32[n, k] (0 where a weight is pruned)."""
    with torch.no_grad():
        safe = torch.where(step > 0, step, 1.0)
        rounded = torch.round(weight / safe).clamp_(-7, 7).mul_(step)
    result: Tensor = _Straight.apply(weight, rounded)
    return result


def int4_steps(weight: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """f32[n, k]: scale * m of each weight, as the artifact would store it; 0 for pruned ones."""
    n, k = weight.shape
    if mask is None:
        _, m, scale = quantize_rows4(weight)
        steps = np.repeat(m.astype(np.float32), GROUP_WEIGHTS, axis=1)[:, :k] * scale[:, None]
        return np.ascontiguousarray(steps)
    parts = quantize_tiles4(weight, mask)
    _, indices, indptr = dense_to_bsr(np.asarray(weight, np.float32), mask)
    tiles = np.repeat(parts["group_scale"][tile_groups(indptr)].astype(np.float32)[:, :, None], 4, axis=2)
    return bsr_to_dense(tiles, indices, indptr, n, k) * parts["scale"][:, None]


class FakeQuantizer:
    """Hook a model so that its linears compute as the artifact's will: `kinds` by linear, s8 or s4; others stay
    float."""

    def __init__(self, model: TorchEncoder, kinds: Mapping[str, LinearKind]) -> None:
        self.model = model
        self.kinds: dict[str, LinearKind] = {name: kind for name, kind in kinds.items() if kind in ("s8", "s4")}
        self.steps: dict[str, Tensor] = {}
        self.age = 0
        model.input_hook, model.weight_hook = self._input, self._weight

    def remove(self) -> None:
        """Back to float."""
        self.model.input_hook = self.model.weight_hook = None

    def advance(self) -> None:
        """Call once a step: the scales of int4 follow the weights."""
        self.age += 1
        if self.age % REFRESH == 0:
            self.steps = {}

    def _input(self, name: str, x: Tensor) -> Tensor:
        return quantize_activations(x) if name in self.kinds else x

    def _weight(self, name: str, weight: Tensor) -> Tensor:
        kind = self.kinds.get(name)
        if kind == "s8":
            return quantize_weight8(weight)
        if kind == "s4":
            if name not in self.steps:
                steps = int4_steps(weight.detach().cpu().numpy(), self.model.masks.get(name))
                self.steps[name] = torch.from_numpy(steps).to(weight.device)
            return quantize_weight4(weight, self.steps[name])
        return weight
