"""Second-order statistics of every linear of a decoder over calibration text, of which the loss is its own next tokens.

Tokens are weighted by the loss's gradients (`approxrt.significance.linear_sums`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from approxrt.progress import Progress
from approxrt.quantization.calibration import read_inputs
from approxrt.significance.linear_sums import LinearSums
from approxrt.significance.statistics import Statistics
from approxrt.torch_models.decoder import TorchDecoder


def collect_from_text(
    model: TorchDecoder,
    batch: torch.Tensor,
    grouped: bool = False,
    progress: Progress | None = None,
    enough: Callable[[], bool] | None = None,
) -> Statistics:
    """Return statistics over `batch` i64[sequences, tokens], each sequence in a pass of its own.

    grouped  linears read their inputs as those of kinds g4, g6 and g8 do
    enough   asked after each sequence: true when the time for this is over
    """
    progress = progress or Progress()
    sums = LinearSums(
        lambda name, x: read_inputs(x, grouped).reshape(-1, x.shape[-1]),
        lambda name, gradient: gradient.reshape(-1, gradient.shape[-1]),
        weighted=True,
    )

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        y = model.linear(name, x)
        sums.reads(name, x)
        sums.writes(name, y)
        return y

    tokens = count = 0
    for ids in batch.to(model.device):
        x = model.embed(ids[None]).requires_grad_()
        for layer in range(len(model.spec.layers)):
            x = model.layer(layer, x, linear)
        loss = functional.cross_entropy(model.head(x, linear)[0, :-1], ids[1:], reduction="sum")
        loss.backward()
        sums.forget()
        tokens, count = tokens + len(ids), count + 1
        progress.count(count, len(batch), f"statistics {count} of {len(batch)}")
        if enough is not None and enough():
            break
    return Statistics(sums.statistics(), tokens, count)
