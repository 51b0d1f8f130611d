"""A decoder's weights to int8 and int4 by calibration text: rounding that knows the inputs, layer after layer.

  statistics  of each linear, A = E[g^2 x x^T] over tokens, x its inputs and g^2 the mean square of the loss's gradient
              at its outputs: a token that the loss does not depend on does not count, however large its activations
  refit       of a linear that loses tiles or inputs: least squares over what stays (`approxrt.pruning.reconstruct`)
  round       GPTQ (`approxrt.quantization.gptq`), each linear with the inputs that the rounded ones before it give,
              quantised a token as the engine does it

The loss that a changed linear adds is estimated as 1/2 tr(dW A dW^T), the second-order term with the empirical Fisher
information for the Hessian, the same for all outputs (`predicted_loss`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.formats import FORMATS, LinearKind
from approxrt.progress import Say
from approxrt.quantization.fake_quantize import groups_of_activations
from approxrt.quantization.gptq import round_weights
from approxrt.torch_models.decoder import TorchDecoder


def calibration(ids: list[int], sequences: int, tokens: int) -> torch.Tensor:
    """i64[sequences, tokens]: pieces spread evenly over a text. ValueError when it is too short for one."""
    count = min(sequences, len(ids) // tokens)
    if count < 1:
        raise ValueError(f"the text has {len(ids)} tokens; {tokens} are needed")
    starts = np.linspace(0, len(ids) - tokens, count).astype(int)
    return torch.tensor([ids[start : start + tokens] for start in starts])


@dataclass(frozen=True)
class Rounding:
    """Say what linears become.

    kinds   by linear; others stay as they are
    masks   tiles to keep, by linear (`approxrt.pruning.magnitude`)
    grids   tensors of linears that stay on the grid they have, which their weights are on
    """

    kinds: Mapping[str, LinearKind]
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    grids: Mapping[str, Mapping[str, np.ndarray]] = field(default_factory=dict)


def round_decoder(
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    rounding: Rounding,
    batch: torch.Tensor,
    progress: Say | None = None,
) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """Return (spec, tensors) with linears rounded (see `round_weights`); the embedding table stays as it is.

    batch   i64[sequences, tokens], on the device to compute on
    """
    model = TorchDecoder(spec, tensors, batch.device)
    out, kinds = dict(tensors), rounding.kinds
    stored: dict[str, LinearKind] = {}
    # Query, key and value read the same inputs, and so do gate and up: (inputs, as the engine reads them, moments).
    last: tuple[torch.Tensor, torch.Tensor, np.ndarray, bool] | None = None

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        nonlocal last
        if name not in kinds:
            return model.linear(name, x)
        grouped = FORMATS[kinds[name]].grouped
        if name in rounding.grids:
            del out[f"{name}.weight"]
            stored[name] = kinds[name]
            out.update({f"{name}.{part}": array for part, array in rounding.grids[name].items()})
            return model.linear(name, read_inputs(x, grouped))
        if last is None or last[0] is not x or last[3] != grouped:
            read = read_inputs(x, grouped)
            flat = read.reshape(-1, x.shape[-1])
            last = (x, read, (flat.T @ flat / len(flat)).cpu().numpy(), grouped)
        _, read, moments, _ = last
        weight, mask = out.pop(f"{name}.weight"), rounding.masks.get(name)
        rounded, stored[name], parts = round_weights(weight, mask, moments, kinds[name])
        out.update({f"{name}.{part}": array for part, array in parts.items()})
        model.weights[f"{name}.weight"] = torch.from_numpy(rounded).to(model.device)
        if progress:
            progress(f"rounding {name}")
        return model.linear(name, read)

    with torch.no_grad():
        x = model.embed(batch)
        for i in range(len(spec.layers)):
            x = model.layer(i, x, linear)
        if "head.out" in kinds and not spec.tied_embeddings:
            # Only the moments matter: no logits of the whole batch.
            read = model.norm("head.norm", x).reshape(-1, spec.hidden_size)
            linear("head.out", read[:: max(1, batch.numel() // 1024)])
    return spec.with_linear_kinds(stored), out


def read_inputs(x: torch.Tensor, grouped: bool) -> torch.Tensor:
    """Rows as the engine reads them for kinds with groups, or for all others."""
    return groups_of_activations(x) if grouped else quantize_dequantize(x)


def quantize_dequantize(x: torch.Tensor) -> torch.Tensor:
    """Rows as the engine reads them: multiples of max|x| / 127."""
    scale = x.abs().amax(-1, keepdim=True).clamp_min(1e-30) / 127
    return torch.round(x / scale).clamp_(-127, 127) * scale
