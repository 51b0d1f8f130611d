"""A decoder's weights to int8 and int4 by calibration text: rounding that knows the inputs, layer after layer.

  statistics  of each linear, A = E[g^2 x x^T] over tokens, x its inputs and g^2 the mean square of the loss's gradient
              at its outputs: a token that the loss does not depend on does not count, however large its activations
  refit       of a linear that loses tiles or inputs: least squares over what stays (`approxrt.approx.refit`)
  round       GPTQ (`approxrt.approx.gptq`), each linear with the inputs that the rounded ones before it give, quantised
              a token as the engine does it

The loss that a changed linear adds is estimated as 1/2 tr(dW A dW^T), the second-order term with the empirical Fisher
information for the Hessian, the same for all outputs (`predicted_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from approxrt.approx.fake_quantize import groups_of_activations
from approxrt.approx.gptq import FORMS, output_error, round_weights
from approxrt.approx.refit import Moments, solve
from approxrt.approx.torch_decoder import TorchDecoder
from approxrt.artifact.decoder_spec import DecoderSpec
from approxrt.artifact.spec import GROUP_KINDS, LinearKind

RIDGE = 1e-2

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Statistics:
    """Of one linear, x its inputs as the engine reads them (quantised a token, or in groups).

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
        """Of some of the inputs."""
        square = np.ix_(inputs, inputs)
        return Statistics(self.weighted[square], self.moments[square], self.mean[inputs], self.weight)


def calibration(ids: list[int], sequences: int, tokens: int) -> torch.Tensor:
    """i64[sequences, tokens]: pieces spread evenly over a text. ValueError when it is too short for one."""
    count = min(sequences, len(ids) // tokens)
    if count < 1:
        raise ValueError(f"the text has {len(ids)} tokens; {tokens} are needed")
    starts = np.linspace(0, len(ids) - tokens, count).astype(int)
    return torch.tensor([ids[start : start + tokens] for start in starts])


def statistics(
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    batch: torch.Tensor,
    progress: Progress | None = None,
    enough: Callable[[], bool] | None = None,
    grouped: bool = False,
) -> dict[str, Statistics]:
    """Statistics of every linear over `batch` i64[sequences, tokens], each sequence in a pass of its own.

    enough   asked after each sequence: true when the time for this is over
    grouped  linears read their inputs as those of kinds g4, g6 and g8 do
    """
    model = TorchDecoder(spec, tensors)
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
    for i, ids in enumerate(batch):
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
    moments = {name: (total[0] / count).numpy() for name, total in inputs.items()}
    return {
        name: Statistics(
            (products / count).numpy(),
            moments[readers[name]],
            (sums / squares.clamp(min=1e-38)).numpy(),
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


def predicted_loss(change: np.ndarray, stats: Statistics) -> float:
    """Nats a token that a change f32[N, K] of a linear's weights adds."""
    return 0.5 * output_error(change, stats.weighted)


def refit_kept(
    weight: np.ndarray, kept: np.ndarray, stats: Statistics, ridge: float = RIDGE
) -> tuple[np.ndarray, np.ndarray]:
    """(weight f32[N, K], what its bias gains f32[N]) of a linear that keeps some of its weights; the others are 0.

    What is made least is the predicted loss: without the gradients' weights, the few tokens with activations far over
    all others would decide, and the loss hardly depends on them.

    kept   bool[strips, columns] of tiles, or bool[K] of inputs
    """
    n, k = weight.shape
    found = Moments()
    whole, x = torch.from_numpy(np.asarray(weight, np.float64)), torch.from_numpy(np.asarray(stats.mean, np.float64))
    found.count, found.x, found.y = 1, x, whole @ x
    found.xx = torch.from_numpy(np.asarray(stats.weighted, np.float64) / max(stats.weight, 1e-300))
    found.yx = whole @ found.xx
    if kept.ndim == 2:
        return solve(weight, kept, found, ridge)
    chosen = torch.from_numpy(np.flatnonzero(kept))
    inner = Moments()
    inner.count, inner.x, inner.y = 1, x[chosen], found.y
    inner.xx, inner.yx = found.xx[chosen][:, chosen], found.yx[:, chosen]
    out = np.zeros((n, k), np.float32)
    out[:, kept], bias = solve(np.ascontiguousarray(weight[:, kept]), None, inner, ridge)
    return out, bias


def round_decoder(
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    batch: torch.Tensor,
    bits: Mapping[str, int],
    masks: Mapping[str, np.ndarray] | None = None,
    progress: Progress | None = None,
    kept: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """(spec, tensors) with the linears of `bits` rounded (see `round_weights`); the word table stays as it is.

    masks   tiles to keep, by linear (`approxrt.approx.prune`)
    kept    tensors of linears that stay on the grid they have, which their weights are on
    """
    model = TorchDecoder(spec, tensors)
    out = dict(tensors)
    kinds: dict[str, LinearKind] = {}
    # Query, key and value read the same inputs, and so do gate and up: (inputs, as the engine reads them, moments).
    last: tuple[torch.Tensor, torch.Tensor, np.ndarray, bool] | None = None

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        nonlocal last
        if name not in bits:
            return model.linear(name, x)
        form = FORMS[bits[name]] in GROUP_KINDS
        if name in (kept or {}):
            assert kept is not None
            del out[f"{name}.weight"]
            kinds[name] = FORMS[bits[name]]
            out.update({f"{name}.{part}": array for part, array in kept[name].items()})
            return model.linear(name, read_inputs(x, form))
        if last is None or last[0] is not x or last[3] != form:
            read = read_inputs(x, form)
            flat = read.reshape(-1, x.shape[-1])
            last = (x, read, (flat.T @ flat / len(flat)).numpy(), form)
        _, read, moments, _ = last
        weight, mask = out.pop(f"{name}.weight"), (masks or {}).get(name)
        rounded, kinds[name], parts = round_weights(weight, mask, moments, bits[name])
        out.update({f"{name}.{part}": array for part, array in parts.items()})
        model.weights[f"{name}.weight"] = torch.from_numpy(rounded)
        if progress:
            progress(f"rounding {name}")
        return model.linear(name, read)

    with torch.no_grad():
        x = model.embed(batch)
        for i in range(len(spec.layers)):
            x = model.layer(i, x, linear)
        if "head.out" in bits and not spec.tied_embeddings:
            # Only the moments matter: no logits of the whole batch.
            read = model.norm("head.norm", x).reshape(-1, spec.hidden_size)
            linear("head.out", read[:: max(1, batch.numel() // 1024)])
    return spec.with_linear_kinds(kinds), out


def read_inputs(x: torch.Tensor, grouped: bool) -> torch.Tensor:
    """Rows as the engine reads them for kinds with groups, or for all others."""
    return groups_of_activations(x) if grouped else quantize_dequantize(x)


def quantize_dequantize(x: torch.Tensor) -> torch.Tensor:
    """Rows as the engine reads them: multiples of max|x| / 127."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return torch.round(x / scale).clamp_(-127, 127) * scale
