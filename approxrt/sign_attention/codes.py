"""Codes for a decoder's sign matching, fitted to its queries and keys on calibration texts.

A decoder turns keys to their positions, so nothing can be folded into its weights (`approxrt.sign_attention.calibrate`
does that for encoders): a rotation a key-value head stays beside it and makes the codes, signs of R q and R (k - m)
with m the mean key. R stacks several orthogonal matrices, each found by iterative quantisation (Gong and Lazebnik 2011)
from another start. The share of equal signs estimates the angle between q and k - m, and its error falls with the root
of how many signs there are (Charikar 2002).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from approxrt.artifact.spec.decoder import DENSE_DECODER_ATTENTION, PREVIEW_OUT, PREVIEW_PROJECT, DecoderSpec
from approxrt.artifact.spec.encoder import MAX_SIGN_DIM
from approxrt.artifact.spec.formats import LinearKind
from approxrt.progress import Progress
from approxrt.quantization.gptq import dequantized_linear
from approxrt.runtime.reference.encoder import kept_keys
from approxrt.sign_attention.calibrate import fit_rotation
from approxrt.torch_models.decoder import TorchDecoder

MOST_CODES = 192
SCORED = 64  # queries a text, evenly over those that see enough keys, on which codes are judged


@dataclass(frozen=True)
class Codes:
    """Hold the codes of one layer: rotation f32[kv_heads, codes, head_dim], centre f32[kv_heads, head_dim], and the
    mean share of exact attention's weight that lies on kept keys."""

    rotation: np.ndarray
    centre: np.ndarray
    held: float


def codes_for(head_dim: int, most: int = MOST_CODES) -> int:
    """Signs a key: whole orthogonal matrices, as many as `most` has room for; 0 where a head is too wide for one."""
    return min(most, MAX_SIGN_DIM) // head_dim * head_dim


@dataclass(frozen=True)
class Kept:
    """Say which keys a query attends to, as `DecoderLayerSpec` has it, and by how many signs they are found.

    codes   signs a key, a multiple of head_dim; None: `codes_for`
    """

    keep: int
    window: int
    codes: int | None = None


def fit_codes(
    decoder: TorchDecoder, texts: Sequence[Sequence[int]], kept: Kept, seed: int = 0, progress: Progress | None = None
) -> dict[int, Codes]:
    """Codes of every layer with attention, by layer.

    decoder   with exact attention (`dense`)
    texts     token ids, each text longer than `kept.keep` tokens
    """
    spec, found = decoder.spec, {}
    with torch.inference_mode():
        states = [decoder.embed(torch.tensor([list(text)]).to(decoder.device)) for text in texts]
        for i, layer in enumerate(spec.layers):
            if progress:
                progress.count(i, len(spec.layers), f"codes of layer {i} of {len(spec.layers)}")
            if layer.has_attention:
                parts = [decoder.queries_keys_values(i, x)[:2] for x in states]
                pairs = [(q[0], k[0]) for q, k in parts]
                found[i] = _fit_layer(pairs, kept, kept.codes or codes_for(layer.head_dim), [seed, i])
            states = [decoder.layer(i, x) for x in states]
    return found


def with_codes(
    spec: DecoderSpec,
    tensors: Mapping[str, np.ndarray],
    codes: Mapping[int, Codes],
    kept: Kept,
    sign_from: int,
) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """The layers of `codes` match signs from `sign_from` tokens on, all others attend to all keys."""
    layers, out = [], {name: array for name, array in tensors.items() if ".attention.sign." not in name}
    for i, layer in enumerate(spec.layers):
        if i not in codes:
            layers.append(dataclasses.replace(layer, **DENSE_DECODER_ATTENTION))
            continue
        rotation = codes[i].rotation
        layers.append(
            dataclasses.replace(
                layer,
                attention_keep=kept.keep,
                sign_window=kept.window,
                sign_from=sign_from,
                sign_codes=rotation.shape[1],
                attention_rest=True,
            )
        )
        out[f"layers.{i}.attention.sign.rotation"] = rotation
        out[f"layers.{i}.attention.sign.centre"] = codes[i].centre
    return dataclasses.replace(spec, layers=tuple(layers)), out


def dense(spec: DecoderSpec, tensors: Mapping[str, np.ndarray]) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """The f32 model that an artifact's weights stand for, exact attention everywhere, the whole head."""
    if spec.head_preview is not None:
        previews = (f"{PREVIEW_PROJECT}.", f"{PREVIEW_OUT}.")
        spec = dataclasses.replace(spec, head_preview=None)
        tensors = {name: array for name, array in tensors.items() if not name.startswith(previews)}
    kinds: dict[str, LinearKind] = {name: "f32" for name, _ in spec.linears()}
    out = {}
    for name, linear in spec.linears():
        own = {key.removeprefix(f"{name}."): tensors[key] for key in tensors if key.startswith(f"{name}.")}
        out[f"{name}.bias"] = own.pop("bias")
        weight = own.get("weight")
        out[f"{name}.weight"] = (
            dequantized_linear(own, linear.out_features, linear.in_features) if weight is None else weight
        )
    for name, array in tensors.items():
        if name.startswith("embeddings.word.") or ".attention.sign." in name:
            continue
        if not any(name.startswith(f"{linear}.") for linear in kinds):
            out[name] = array
    out["embeddings.word.weight"] = _words(spec, tensors)
    layers = tuple(dataclasses.replace(layer, **DENSE_DECODER_ATTENTION) for layer in spec.layers)
    plain = dataclasses.replace(spec, layers=layers, embedding_kind="f32").with_linear_kinds(kinds)
    return plain, out


def _words(spec: DecoderSpec, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    name = "embeddings.word."
    own = {key.removeprefix(name): array for key, array in tensors.items() if key.startswith(name)}
    return own["weight"] if "weight" in own else dequantized_linear(own, spec.vocab_size, spec.hidden_size)


def _fit_layer(pairs: Sequence[tuple[Tensor, Tensor]], kept: Kept, codes: int, seed: Sequence[int]) -> Codes:
    """pairs: (q [heads, tokens, d], k [kv_heads, tokens, d]) of every text."""
    kv_heads, _, dim = pairs[0][1].shape
    group = pairs[0][0].shape[0] // kv_heads
    generator = np.random.default_rng(list(seed))
    rotation, centre = [], []
    for head in range(kv_heads):
        mean = torch.cat([k[head] for _, k in pairs]).mean(0)
        own = [(q[head * group : (head + 1) * group].reshape(-1, dim), k[head] - mean) for q, k in pairs]
        rotation.append(torch.cat([fit_rotation(own, generator) for _ in range(codes // dim)]))
        centre.append(mean)
    found = torch.stack(rotation), torch.stack(centre)
    shares = [_held(q, k, *found, kept) for q, k in pairs]
    return Codes(found[0].cpu().numpy(), found[1].cpu().numpy(), float(np.mean(shares)))


def _held(q: Tensor, k: Tensor, rotation: Tensor, centre: Tensor, kept: Kept) -> float:
    """Share of exact attention's weight on kept keys: queries that see more than `kept.keep` of them."""
    keep = kept.keep
    heads, n, dim = q.shape
    group = heads // k.shape[0]
    turned_k = (k - centre[:, None]) @ rotation.transpose(1, 2)
    shares = []
    for p in np.linspace(min(keep + 1, n - 1), n - 1, SCORED).astype(int):
        query, keys = q[:, p : p + 1], k[:, : p + 1]
        scores = query @ keys.repeat_interleave(group, 0).transpose(1, 2) / dim**0.5
        turned = query @ rotation.repeat_interleave(group, 0).transpose(1, 2)
        first = torch.zeros(p + 1, dtype=torch.bool, device=q.device)
        first[0] = True
        mask = kept_keys(turned, turned_k[:, : p + 1], keep, first, causal=True, window=kept.window)
        shares.append(float((torch.softmax(scores, -1) * mask).sum(-1).mean()))
    return float(np.mean(shares))
