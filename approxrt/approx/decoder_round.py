"""A decoder's weights to int8 and int4 by calibration text: rounding that knows the inputs, layer after layer.

  smooth      the inputs of `down` have channels far over the others; they are divided by s and the columns of `down`
              multiplied, s = sqrt(max|x| / max|W|) (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438). With a gate, the
              rows of `up` are divided: x is a product with them, so nothing is left to do at run time
  statistics  of each linear, A = E[x x^T] of its inputs and E[g^2] of the loss's gradient at its outputs
  round       GPTQ (`approxrt.approx.gptq`), each linear with the inputs that the rounded ones before it give, quantised
              a token as the engine does it

The loss that a rounded linear adds is estimated as 1/2 sum_o E[g_o^2] (dW A dW^T)_oo, the second-order term with the
empirical Fisher information for the Hessian (`predicted_loss`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from approxrt.approx.gptq import round_weights
from approxrt.approx.torch_decoder import TorchDecoder
from approxrt.artifact.decoder_spec import DecoderSpec
from approxrt.artifact.spec import LinearKind

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Statistics:
    """Of one linear: inputs' second moments f32[K, K], outputs' gradient squares f32[N], largest inputs f32[K]."""

    moments: np.ndarray
    gradients: np.ndarray
    largest: np.ndarray


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
    moments: dict[str, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}
    largest: dict[str, torch.Tensor] = {}

    def add(sums: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> None:
        sums[name] = sums[name] + value if name in sums else value

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        y = model.linear(name, x)
        with torch.no_grad():
            flat = x.detach().reshape(-1, x.shape[-1])
            add(moments, name, flat.T @ flat)
            peak = flat.abs().amax(0)
            largest[name] = torch.maximum(largest[name], peak) if name in largest else peak
        y.register_hook(lambda g: add(gradients, name, g.reshape(-1, g.shape[-1]).square().sum(0)))
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
    return {
        name: Statistics((moments[name] / count).numpy(), (gradients[name] / count).numpy(), largest[name].numpy())
        for name in moments
    }


def smooth(
    spec: DecoderSpec, tensors: Mapping[str, np.ndarray], stats: Mapping[str, Statistics]
) -> dict[str, np.ndarray]:
    """The tensors of the same function with smaller peaks before `down`; unchanged without gates."""
    out = dict(tensors)
    if not spec.gated:
        return out
    for i, layer in enumerate(spec.layers):
        if not layer.has_ffn:
            continue
        up, down = f"layers.{i}.ffn.up", f"layers.{i}.ffn.down"
        peak, weights = stats[down].largest, np.abs(out[f"{down}.weight"]).max(axis=0)
        s = np.sqrt(np.maximum(peak, 1e-5) / np.maximum(weights, 1e-5)).astype(np.float32)
        s /= np.exp(np.log(s).mean())
        out[f"{up}.weight"] = out[f"{up}.weight"] / s[:, None]
        out[f"{up}.bias"] = out[f"{up}.bias"] / s
        out[f"{down}.weight"] = out[f"{down}.weight"] * s
    return out


def predicted_loss(change: np.ndarray, stats: Statistics) -> float:
    """Nats a token that a change f32[N, K] of a linear's weights adds."""
    change = change.astype(np.float64)
    errors = np.einsum("nk,nk->n", change @ stats.moments.astype(np.float64), change)
    return float(0.5 * (errors * stats.gradients).sum())


def round_decoder(
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    batch: torch.Tensor,
    bits: Mapping[str, int],
    masks: Mapping[str, np.ndarray] | None = None,
    progress: Progress | None = None,
) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """(spec, tensors) with the linears of `bits` (8 or 4 by name) rounded; the word table stays as it is.

    masks   tiles to keep, by linear (`approxrt.approx.prune`)
    """
    model = TorchDecoder(spec, tensors)
    out = dict(tensors)
    kinds: dict[str, LinearKind] = {}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        if name not in bits:
            return model.linear(name, x)
        x = quantize_dequantize(x)
        flat = x.reshape(-1, x.shape[-1])
        moments = (flat.T @ flat / len(flat)).numpy()
        weight = out.pop(f"{name}.weight")
        rounded, kinds[name], parts = round_weights(weight, (masks or {}).get(name), moments, bits[name])
        out.update({f"{name}.{part}": array for part, array in parts.items()})
        model.weights[f"{name}.weight"] = torch.from_numpy(rounded)
        if progress:
            progress(name)
        return model.linear(name, x)

    with torch.no_grad():
        x = model.embed(batch)
        for i in range(len(spec.layers)):
            x = model.layer(i, x, linear)
        if "head.out" in bits and not spec.tied_embeddings:
            # Only the moments matter: no logits of the whole batch.
            linear(
                "head.out", model.norm("head.norm", x).reshape(-1, spec.hidden_size)[:: max(1, batch.numel() // 4096)]
            )
    return spec.with_linear_kinds(kinds), out


def quantize_dequantize(x: torch.Tensor) -> torch.Tensor:
    """Rows as the engine reads them: multiples of max|x| / 127."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return torch.round(x / scale).clamp_(-127, 127) * scale
