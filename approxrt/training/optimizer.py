"""The optimiser of all trainers, and which parameters its weight decay holds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

# AdamW in one pass over all parameters, which torch has for a few devices.
FUSED_DEVICES = ("cpu", "cuda")


def decay_groups(parameters: Iterable[torch.Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: matrices decay; biases and norms, whose size is no sign of overfitting, do not."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def adamw(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], fused: bool) -> torch.optim.AdamW:
    """Return AdamW over groups on one device, fused where that is wanted and the device can."""
    device = next(parameter for group in groups for parameter in group["params"]).device
    wanted = True if fused and device.type in FUSED_DEVICES else None
    return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=wanted)
