"""The same decoder in coordinates in which activations have no outliers, so that 8 bits a token lose little.

Activations of trained decoders have a few channels far over all others (Dettmers et al. 2022, arXiv 2208.07339), and
one scale a token leaves the others few of its 127 steps. An orthogonal matrix R spreads them over all channels (QuaRot,
Ashkboos et al. 2024, arXiv 2404.00456), and costs nothing at run time, because it is part of the weights:

  residual stream   x' = x R. An RMS norm without its weights commutes with R, so these go into the linears behind it
                    first; linears that read x become W R, those that add to it R^T W, the embedding table E R.
  values            v' = v H a head, with H a Hadamard matrix over sqrt(head_dim); the output projection's columns of
                    the head become W H.
  FFN               the inputs of `down` are products, and nothing can be moved past them: there H is computed, on
                    blocks of up to 128 elements (`DecoderSpec.down_block`), and W becomes W H.

The head then differs from the embedding table (its norm's weights, the other side of R): it has a matrix of its own.
Layer norms subtract a mean and do not commute with R: models that have them stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from approxrt.artifact.lazy import LazyTensors
from approxrt.artifact.spec.decoder import DOWN_BLOCKS, DecoderSpec
from approxrt.artifact.storage.hadamard import hadamard

_SEED = 576
Maker = Callable[[], np.ndarray]


def can_rotate(spec: DecoderSpec) -> bool:
    """Tell whether `rotate` applies: RMS norms, every linear f32, and not rotated yet."""
    return spec.norm == "rms" and spec.down_block == 0 and all(linear.kind == "f32" for _, linear in spec.linears())


def rotate(spec: DecoderSpec, tensors: Mapping[str, np.ndarray]) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """Return (spec, f32 tensors) of the same function, but for rounding. Raises ValueError where it does not apply."""
    spec, lazy = rotate_lazily(spec, tensors)
    return spec, dict(lazy)


def rotate_lazily(spec: DecoderSpec, tensors: Mapping[str, np.ndarray]) -> tuple[DecoderSpec, LazyTensors]:
    """The same, with each tensor rotated when it is asked for."""
    if not can_rotate(spec):
        raise ValueError("only all-f32 decoders with RMS norms can be rotated")
    out: dict[str, Maker] = {name: partial(tensors.__getitem__, name) for name in tensors}
    r, block = orthogonal(spec.hidden_size), _down_block(spec)

    def reads(name: str, gamma: np.ndarray) -> None:
        _then(out, f"{name}.weight", lambda weight: _product(weight * gamma, r))

    def writes(name: str) -> None:
        if f"{name}.weight" in out:
            _then(out, f"{name}.weight", lambda weight: _product(r.T, weight))
        _then(out, f"{name}.bias", lambda bias: _product(bias, r))

    def gamma_of(norm: str) -> np.ndarray:
        gamma = out[f"{norm}.weight"]()
        _then(out, f"{norm}.weight", np.ones_like)
        return gamma

    for i, layer in enumerate(spec.layers):
        at = f"layers.{i}.attention"
        if layer.has_attention:
            gamma = gamma_of(f"{at}.norm")
            for part in ("query", "key", "value"):
                reads(f"{at}.{part}", gamma)
            _rotate_values(out, at, layer.num_heads, layer.num_kv_heads, layer.head_dim)
        writes(f"{at}.output")
        at = f"layers.{i}.ffn"
        if layer.has_ffn:
            gamma = gamma_of(f"{at}.norm")
            for part in ("gate", "up") if spec.gated else ("up",):
                reads(f"{at}.{part}", gamma)
        if layer.has_ffn and block:
            _then(out, f"{at}.down.weight", partial(_spread, by=hadamard(block)))
        writes(f"{at}.down")
    if spec.tied_embeddings:
        out["head.out.weight"] = out["embeddings.word.weight"]
        out["head.out.bias"] = partial(np.zeros, spec.vocab_size, np.float32)
    reads("head.out", gamma_of("head.norm"))
    for name in ("embeddings.word.weight", "embeddings.position.weight"):
        if name in out:
            _then(out, name, lambda table: _product(table, r))
    return dataclasses.replace(spec, tied_embeddings=False, down_block=block), LazyTensors(out)


def _then(out: dict[str, Maker], name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    before = out[name]
    out[name] = lambda: change(before())


def _spread(weight: np.ndarray, by: np.ndarray) -> np.ndarray:
    """Each row's blocks, of the size of `by`, times it."""
    return _product(weight.reshape(len(weight), -1, len(by)), by).reshape(weight.shape)


def _down_block(spec: DecoderSpec) -> int:
    """The largest block that divides every FFN; 0 where none does."""
    sizes = [layer.intermediate_size for layer in spec.layers if layer.has_ffn]
    fits = [block for block in DOWN_BLOCKS[1:] if not any(size % block for size in sizes)]
    return max(fits, default=0) if sizes else 0


def orthogonal(n: int) -> np.ndarray:
    """A random orthogonal f64[n, n], the same for every call."""
    q, upper = np.linalg.qr(np.random.default_rng(_SEED).standard_normal((n, n)))
    return q * np.sign(np.diagonal(upper))


def _rotate_values(out: dict[str, Maker], at: str, heads: int, kv_heads: int, dim: int) -> None:
    """A head's values by H, and the output projection's columns that read them."""
    if dim & (dim - 1):
        return
    h = hadamard(dim)
    _then(out, f"{at}.value.weight", lambda w: _product(h, w.reshape(kv_heads, dim, -1)).reshape(w.shape))
    _then(out, f"{at}.value.bias", lambda b: _product(b.reshape(kv_heads, dim), h).reshape(b.shape))
    _then(out, f"{at}.output.weight", lambda w: _product(w.reshape(len(w), heads, dim), h).reshape(w.shape))


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray((a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32))
