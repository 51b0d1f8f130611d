"""Second-order statistics of every linear of a decoder over calibration text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.pruning.second_order import Statistics
from approxrt.quantization.calibration import read_inputs
from approxrt.torch_models.decoder import TorchDecoder

Progress = Callable[[str], None]


def statistics(
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    batch: torch.Tensor,
    progress: Progress | None = None,
    enough: Callable[[], bool] | None = None,
    grouped: bool = False,
    device: str | torch.device = "cpu",
) -> dict[str, Statistics]:
    """Statistics of every linear over `batch` i64[sequences, tokens], each sequence in a pass of its own.

    enough   asked after each sequence: true when the time for this is over
    grouped  linears read their inputs as those of kinds g4, g6 and g8 do
    """
    model = TorchDecoder(spec, tensors, device)
    weighted: dict[str, tuple[torch.Tensor, ...]] = {}  # sums of g^2 x x^T, of g^2 x, of g^2
    inputs: dict[str, tuple[torch.Tensor, ...]] = {}  # of x x^T
    last: list[Any] = [None, None, ""]  # inputs, as the engine reads them, the linear that read them first
    readers: dict[str, str] = {}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        y = model.linear(name, x)
        if last[0] is not x:
            flat = read_inputs(x.detach(), grouped).reshape(-1, x.shape[-1])
            last[:] = [x, flat, name]
            _sum_up(inputs, name, (flat.T @ flat,))
        readers[name], flat = last[2], last[1]

        def add(gradient: torch.Tensor) -> None:
            squares = gradient.reshape(-1, gradient.shape[-1]).square().mean(1, keepdim=True)
            rows = flat * squares.sqrt()
            _sum_up(weighted, name, (rows.T @ rows, (flat * squares).sum(0), squares.sum()))

        y.register_hook(add)
        return y

    count = 0
    for i, ids in enumerate(batch.to(model.device)):
        x = model.embed(ids[None]).requires_grad_()
        for layer in range(len(spec.layers)):
            x = model.layer(layer, x, linear)
        loss = functional.cross_entropy(model.head(x, linear)[0, :-1], ids[1:], reduction="sum")
        loss.backward()
        count += len(ids)
        if progress:
            progress(f"statistics {i + 1} of {len(batch)}")
        if enough is not None and enough():
            break
    moments = {name: (total[0] / count).cpu().numpy() for name, total in inputs.items()}
    return {
        name: Statistics(
            (products / count).cpu().numpy(),
            moments[readers[name]],
            (sums / squares.clamp(min=1e-38)).cpu().numpy(),
            float(squares) / count,
        )
        for name, (products, sums, squares) in weighted.items()
    }


def _sum_up(sums: dict[str, tuple[torch.Tensor, ...]], name: str, new: tuple[torch.Tensor, ...]) -> None:
    if name in sums:
        for total, part in zip(sums[name], new, strict=True):
            total += part
    else:
        sums[name] = new
