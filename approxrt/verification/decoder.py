"""convert's last look at a decoder: what was written is loaded, run, and compared with what was read.

The artifact is compared with the checkpoint's own float32 weights, in plain numpy, a layer at a time, so that a .gguf
file needs neither torch nor a second copy of its weights. That these weights mean what approxrt takes them for is
compared with transformers, where the source is a folder. So a conversion that would fail at its first use, or answer
for another model, fails at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.errors import CheckpointError, MissingDependencyError
from approxrt.models.classifier import quiet
from approxrt.models.decoder import DecoderCheckpoint
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.tokenize import load_tokenizer

# Texts whose tokens are run.
TEXTS = (
    "The capital of France is",
    " Hello,  world!\n\n1. It's 12345 o'clock\tnow. ",
    "Ünïcode: 漢字かな 한국어 привет 🙂👩‍🔬 e\u0301",
    "def f(x):\n    return {'a': x ** 2}  # <tag>",
)
# Tokens that are run: errors of quantisation add up along a text, mistakes show in a few.
RUN = 24
# The largest share of the logits' own spread (root mean square) that a dense artifact's may be off by, by bits. In
# float32 the order of summation is left. 8 bits cost some hundredths on small random models; another model's logits are
# off by 1.4 times their spread. Fewer bits may cost so much on a model that was made up that there is nothing to see.
SAME = 5e-4  # of the largest logit, between two float32 computations: sums in another order, over some tens of layers
BOUNDS: Mapping[int, float] = {32: 1e-3, 8: 1.0}


def verify_decoder(path: Path, checkpoint: DecoderCheckpoint, bits: int, pruned: bool = False) -> dict[str, Any]:
    """Load the artifact at `path`, run it and compare its logits with those of `checkpoint`; what the card says of it.

    `fidelity` holds the error of the logits as a share of their spread, or None where it is not bounded: of a `pruned`
    model, and with bits that have no bound, logits must be numbers, and no more is asked.
    Raises ArtifactError for an artifact that cannot be loaded, CheckpointError for one that gives something else.
    """
    artifact, name = read_artifact(path), checkpoint.source["name"]
    tokenizer = load_tokenizer(artifact)
    tokenizer.no_truncation()
    ids = _ids(tokenizer, checkpoint.spec)
    engine = DecoderEngine(artifact)
    found = engine.prefill(engine.cache(len(ids)), ids).astype(np.float64)
    if not np.isfinite(found).all():
        raise CheckpointError(f"{name}: the converted model's logits are no numbers; use other bits, or 32")
    expected = None
    if checkpoint.folder is not None:
        expected = reference_logits(checkpoint.spec, checkpoint.tensors, ids).astype(np.float64)
        _check_same(expected, _original_logits(checkpoint, ids), name)
    if pruned or bits not in BOUNDS:
        return {"fidelity": {"tokens": len(ids), "logit_error": None}}
    if expected is None:
        expected = reference_logits(checkpoint.spec, checkpoint.tensors, ids).astype(np.float64)
    spread = float(np.std(expected))
    error = float(np.sqrt(np.mean((found - expected) ** 2))) / (spread or 1.0)
    if error > BOUNDS[bits]:
        raise CheckpointError(
            f"{name}: the artifact does not answer as the checkpoint does: its logits are off by {error:.3g} of their "
            f"spread, and with bits={bits} at most {BOUNDS[bits]:g} is expected; convert with more bits"
        )
    return {"fidelity": {"tokens": len(ids), "logit_error": round(error, 6)}}


def _original_logits(checkpoint: DecoderCheckpoint, ids: list[int]) -> np.ndarray:
    """transformers' float32 logits of the token after `ids`."""
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        package = str(error.name)
        raise MissingDependencyError(package, "compress", "comparing an artifact with its checkpoint") from None
    try:
        with quiet(), torch.inference_mode():
            model = AutoModelForCausalLM.from_pretrained(
                str(checkpoint.folder), local_files_only=True, dtype=torch.float32, attn_implementation="eager"
            ).eval()
            logits: np.ndarray = model(input_ids=torch.tensor([ids])).logits[0, -1].double().numpy()
            return logits
    except Exception as error:  # of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"transformers cannot load {checkpoint.source['name']!r} to compare the artifact with: {reason}"
        ) from error


def _check_same(ours: np.ndarray, theirs: np.ndarray, name: str) -> None:
    scale = float(np.abs(theirs).max()) + 1.0
    apart = float(np.abs(ours - theirs).max()) if ours.shape == theirs.shape else math.inf
    if not apart <= SAME * scale:
        raise CheckpointError(
            f"checkpoint {name!r}: in float32 the logits differ from transformers' by {apart:.3g} (values up to "
            f"{scale - 1:.3g}). Something in its files means what approxrt does not know, so nothing was written; "
            "please report it with the checkpoint's config.json"
        )


def _ids(tokenizer: Any, spec: DecoderSpec) -> list[int]:
    """The first tokens of the texts, or of the vocabulary where they have none."""
    ids: list[int] = [token for text in TEXTS for token in tokenizer.encode(text).ids]
    return (ids or list(range(spec.vocab_size)))[: min(RUN, spec.max_positions)]


def reference_logits(spec: DecoderSpec, tensors: Mapping[str, np.ndarray], ids: Sequence[int]) -> np.ndarray:
    """f32[vocab] of the token after `ids`, of an all-f32 model. A tensor is taken when it is needed, and let go."""
    x = tensors["embeddings.word.weight"][list(ids)]
    if spec.positions == "learned":
        x = x + tensors["embeddings.position.weight"][: len(x)]
    for i, layer in enumerate(spec.layers):
        at = f"layers.{i}"
        n = _norm(spec, tensors, f"{at}.attention.norm", x)
        q, k, v = (
            _linear(tensors, f"{at}.attention.{part}", n).reshape(len(x), -1, layer.head_dim).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        if spec.rope is not None:
            angles = np.arange(len(x), dtype=np.float32)[:, None] * spec.rope.frequencies(layer.head_dim)
            q, k = _turned(q, angles), _turned(k, angles)
        k, v = (np.repeat(part, layer.num_heads // layer.num_kv_heads, axis=0) for part in (k, v))
        scores = q @ k.swapaxes(1, 2) / np.float32(math.sqrt(layer.head_dim))
        scores[:, np.triu(np.ones((len(x), len(x)), bool), 1)] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        attended = (weights / weights.sum(axis=-1, keepdims=True)) @ v
        x = x + _linear(tensors, f"{at}.attention.output", attended.swapaxes(0, 1).reshape(len(x), -1))
        n = _norm(spec, tensors, f"{at}.ffn.norm", x)
        inner = _ACTIVATIONS[spec.activation](_linear(tensors, f"{at}.ffn.{'gate' if spec.gated else 'up'}", n))
        if spec.gated:
            inner = inner * _linear(tensors, f"{at}.ffn.up", n)
        x = x + _linear(tensors, f"{at}.ffn.down", inner)
    last = _norm(spec, tensors, "head.norm", x[-1:])
    if spec.tied_embeddings:
        logits: np.ndarray = (last @ tensors["embeddings.word.weight"].T)[0]
        return logits
    return _linear(tensors, "head.out", last)[0]


def _linear(tensors: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    out: np.ndarray = x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]
    return out


def _norm(spec: DecoderSpec, tensors: Mapping[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    if spec.norm == "layer":
        x = x - x.mean(axis=-1, keepdims=True)
    x = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(spec.norm_eps))
    x = x * tensors[f"{name}.weight"]
    return x + tensors[f"{name}.bias"] if spec.norm == "layer" else x


def _turned(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    a, b = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _silu(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def _gelu(x: np.ndarray) -> np.ndarray:
    erf = np.array([math.erf(value) for value in (x / math.sqrt(2)).ravel()], np.float32)
    return x * (np.float32(0.5) + np.float32(0.5) * erf.reshape(x.shape))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)))


def _relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
}
