"""The CPU engine of decoders: caches, and steps that append tokens to them and return logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

import approxrt._C as _C
from approxrt._C import KvCache
from approxrt.artifact.spec.decoder import DENSE_DECODER_ATTENTION, DecoderSpec
from approxrt.errors import InputError
from approxrt.runtime.cpu.engine import suitable_isa
from approxrt.runtime.threads import resolve_threads, warn_of_missing_threads

CACHE_KINDS = ("f32", "f16", "int8")
# Tokens of a prompt that a step takes: what they need besides the cache is some 20 KB each.
PROMPT_CHUNK = 512


class DecoderWeights(Protocol):
    """Hold what the engine needs of an artifact: its spec and tensors, on disk or in memory."""

    @property
    def decoder_spec(self) -> DecoderSpec: ...

    @property
    def tensors(self) -> Mapping[str, np.ndarray]: ...


class DecoderEngine:
    """Runs one decoder on CPU kernels. Safe to call from several threads, each with caches of its own.

    cache_kind   how keys and values are kept: f32, f16 or int8 (a scale a token and head). None: f32 for a model whose
                 attention is f32 throughout, else f16
    """

    def __init__(
        self,
        artifact: DecoderWeights,
        threads: int | None = None,
        cache_kind: str | None = None,
        wait: bool = True,
        block_tokens: int = 48,
    ) -> None:
        """`wait=False` returns while the weights are being packed: call `wait` before anything else."""
        self.spec = artifact.decoder_spec
        self.threads = resolve_threads(threads)
        self.isa = suitable_isa(linear.kind for _, linear in self.spec.linears())
        if cache_kind is None:
            exact = all(layer.key == "f32" and layer.value == "f32" for layer in self.spec.layers)
            cache_kind = "f32" if exact else "f16"
        if cache_kind not in CACHE_KINDS:
            raise InputError(f"cache_kind is {cache_kind!r}; it must be one of {', '.join(CACHE_KINDS)}")
        self.cache_kind = cache_kind
        self._decoder = _C.Decoder(
            decoder_config(self.spec), dict(artifact.tensors), self.isa, self.threads, block_tokens
        )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when the weights are packed. From then on only the embeddings' tensors are read."""
        self._decoder.wait()

    def cache(self, capacity: int) -> KvCache:
        """An empty cache for one sequence of at most `capacity` tokens."""
        return self._decoder.cache(capacity, self.cache_kind)

    def step(self, caches: Sequence[KvCache], tokens: Sequence[Sequence[int]], all_logits: bool = False) -> np.ndarray:
        """Append tokens[i] to caches[i]; float32 [caches, vocab] of each last token, or of every token.

        A sequence's logits depend neither on the others nor on how its tokens are divided into steps.
        """
        logits = self._decoder.step(caches, tokens, all_logits)
        if missing := self._decoder.missing_threads:
            warn_of_missing_threads(self.threads, missing)
        return logits

    def hidden(self, caches: Sequence[KvCache], tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Append tokens[i] to caches[i]; float32 [tokens, hidden] that the head would read, after its norm."""
        return self._decoder.step(caches, tokens, hidden=True)

    def prefill(self, cache: KvCache, tokens: Sequence[int]) -> np.ndarray:
        """Append a prompt in chunks; float32 [vocab] of its last token."""
        logits = None
        for begin in range(0, len(tokens), PROMPT_CHUNK):
            logits = self.step([cache], [tokens[begin : begin + PROMPT_CHUNK]])[0]
        if logits is None:
            raise InputError("the prompt is empty: give at least one token")
        return logits

    @contextmanager
    def profiling(self) -> Iterator[dict[str, Any]]:
        """See `Model.profiling`."""
        taken: dict[str, Any] = {}
        self._decoder.take_profile()
        self._decoder.set_profiling(True)
        try:
            yield taken
        finally:
            self._decoder.set_profiling(False)
            taken.update(self._decoder.take_profile())

    def info(self) -> dict[str, Any]:
        """Return what runs where."""
        return {
            "device": "cpu",
            "isa": self.isa,
            "threads": self.threads,
            "kernels": dict(_C.chosen_kernels(self.isa)),
            "cache_kind": self.cache_kind,
            "packed_weight_bytes": self._decoder.weight_bytes,
            "scratch_bytes": self._decoder.scratch_bytes,
        }


def decoder_config(spec: DecoderSpec) -> dict[str, Any]:
    """The sizes that the C++ decoder is built from."""
    preview = spec.head_preview
    dims = {layer.head_dim for layer in spec.layers if layer.has_attention}
    frequencies = np.zeros(0, np.float32)
    if spec.rope is not None and dims:
        frequencies = spec.rope.frequencies(dims.pop())
    return {
        "vocab_size": spec.vocab_size,
        "embedding_size": spec.hidden_size,
        "hidden_size": spec.hidden_size,
        "max_positions": spec.max_positions,
        "norm": spec.norm,
        "norm_eps": spec.norm_eps,
        "activation": spec.activation,
        "down_block": spec.down_block,
        "gated": spec.gated,
        "positions": spec.positions,
        "frequencies": frequencies,
        "tied_embeddings": spec.tied_embeddings,
        "head_preview": None if preview is None else {"width": preview.width, "margin": preview.margin},
        "layers": [
            {
                "num_heads": layer.num_heads,
                "num_kv_heads": layer.num_kv_heads,
                "head_dim": layer.head_dim,
                "intermediate_size": layer.intermediate_size,
                **{name: getattr(layer, name) for name in DENSE_DECODER_ATTENTION},
            }
            for layer in spec.layers
        ],
    }
