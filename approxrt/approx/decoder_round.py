"""A decoder's weights to int8 and int4 by calibration text: rounding that knows the inputs, layer after layer.

  statistics  of each linear, A = E[g^2 x x^T] over tokens, x its inputs and g^2 the mean square of the loss's gradient
              at its outputs: a token that the loss does not depend on does not count, however large its activations
  round       GPTQ (`approxrt.approx.gptq`), each linear with the inputs that the rounded ones before it give, quantised
              a token as the engine does it

The loss that a rounded linear adds is estimated as 1/2 tr(dW A dW^T), the second-order term with the empirical Fisher
information for the Hessian, the same for all outputs (`predicted_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from approxrt.approx.gptq import output_error, round_weights
from approxrt.approx.torch_decoder import TorchDecoder
from approxrt.artifact.decoder_spec import DecoderSpec
from approxrt.artifact.spec import LinearKind

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Statistics:
    """Of one linear: E[g^2 x x^T] f32[K, K]."""

    weighted: np.ndarray


def calibration(ids: list[int], sequences: int, tokens: int) -> torch.Tensor:
    """i64[sequences, tokens]: pieces spread evenly over a text. ValueError when it is too short for one."""
    count = min(sequences, len(ids) // tokens)
    if count < 1:
        raise ValueError(f"the text has {len(ids)} tokens; {tokens} are needed")
    starts = np.linspace(0, len(ids) - tokens, count).astype(int)
    return torch.tensor([ids[start : start + tokens] for start in starts])


def statistics(
    spec: DecoderSpec, tensors: Mapping[str, np.ndarray], batch: torch.Tensor, progress: Progress | None = None
) -> dict[str, Statistics]:
    """Statistics of every linear over `batch` i64[sequences, tokens], each sequence in a pass of its own."""
    model = TorchDecoder(spec, tensors)
    weighted: dict[str, torch.Tensor] = {}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        y = model.linear(name, x)
        flat = x.detach().reshape(-1, x.shape[-1])

        def add(gradient: torch.Tensor) -> None:
            rows = flat * gradient.reshape(-1, gradient.shape[-1]).square().mean(1, keepdim=True).sqrt()
            moments = rows.T @ rows
            weighted[name] = weighted[name] + moments if name in weighted else moments

        y.register_hook(add)
        return y

    for i, ids in enumerate(batch):
        x = model.embed(ids[None]).requires_grad_()
        for layer in range(len(spec.layers)):
            x = model.layer(layer, x, linear)
        loss = functional.cross_entropy(model.head(x, linear)[0, :-1], ids[1:], reduction="sum")
        loss.backward()
        if progress:
            progress(f"statistics {i + 1} of {len(batch)}")
    count = batch.numel()
    return {name: Statistics((weighted[name] / count).numpy()) for name in weighted}


def predicted_loss(change: np.ndarray, stats: Statistics) -> float:
    """Nats a token that a change f32[N, K] of a linear's weights adds."""
    return 0.5 * output_error(change, stats.weighted)


def round_decoder(
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    batch: torch.Tensor,
    bits: Mapping[str, int],
    masks: Mapping[str, np.ndarray] | None = None,
    progress: Progress | None = None,
) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """(spec, tensors) with the linears of `bits` (8, 5 or 4 by name) rounded; the word table stays as it is.

    masks   tiles to keep, by linear (`approxrt.approx.prune`)
    """
    model = TorchDecoder(spec, tensors)
    out = dict(tensors)
    kinds: dict[str, LinearKind] = {}
    # Query, key and value read the same inputs, and so do gate and up: (inputs, as the engine reads them, moments).
    last: tuple[torch.Tensor, torch.Tensor, np.ndarray] | None = None

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        nonlocal last
        if name not in bits:
            return model.linear(name, x)
        if last is None or last[0] is not x:
            read = quantize_dequantize(x)
            flat = read.reshape(-1, x.shape[-1])
            last = (x, read, (flat.T @ flat / len(flat)).numpy())
        _, read, moments = last
        weight = out.pop(f"{name}.weight")
        rounded, kinds[name], parts = round_weights(weight, (masks or {}).get(name), moments, bits[name])
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


def quantize_dequantize(x: torch.Tensor) -> torch.Tensor:
    """Rows as the engine reads them: multiples of max|x| / 127."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return torch.round(x / scale).clamp_(-127, 127) * scale
