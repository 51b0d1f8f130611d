"""Which parameters weight decay holds: one rule for every trainer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def fused(device: torch.device) -> bool:
    """Tell whether AdamW may take its step in one pass over all parameters, which a few devices can."""
    return device.type in ("cpu", "cuda")


def decay_groups(parameters: Iterable[torch.Tensor], weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for AdamW: matrices decay; biases and norms, whose size is no sign of overfitting, do not."""
    parameters = list(parameters)
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
