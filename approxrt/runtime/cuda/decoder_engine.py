"""The GPU engine of decoders: caches, and steps that append tokens to them, as the CPU's `DecoderEngine`.

Logits are those of the CPU engine within float16's rounding of projections, keys and values. A sequence's logits do
not depend on the others of a step; how its tokens are divided into steps changes the order of attention's sums, and
with it the last bits.

Caches are runs of rows of one tensor a layer, of `cache_tokens` tokens in all.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.errors import DeviceError, InputError
from approxrt.runtime.cuda.decode_plan import SPARE_ROWS, RowPool, StepViews, fill_step, step_bucket
from approxrt.runtime.cuda.engine import require_cuda, warn_of_cost

CACHE_TOKENS = 32768
# Tokens of a prompt that a step takes.
PROMPT_CHUNK = 2048


class DecoderWeights(Protocol):
    """Hold what the engine needs of an artifact."""

    @property
    def decoder_spec(self) -> DecoderSpec: ...

    @property
    def tensors(self) -> Mapping[str, np.ndarray]: ...


class GpuCache:
    """Keys and values of one sequence: rows `first` .. `first + capacity - 1` of the engine's. Freed when collected."""

    def __init__(self, pool: RowPool, first: int, capacity: int, row_bytes: int) -> None:
        self.first, self.capacity, self.length = first, capacity, 0
        self.bytes = capacity * row_bytes
        self._free = weakref.finalize(self, pool.give_back, first, capacity)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        if not 0 <= length <= self.length:
            raise InputError(f"cannot truncate a cache of {self.length} tokens to {length}")
        self.length = length


class CudaDecoderEngine:
    """Runs one decoder on a GPU. Safe to call from several threads, which take turns; not across a fork."""

    def __init__(self, artifact: DecoderWeights, device: str = "cuda", cache_tokens: int = CACHE_TOKENS) -> None:
        """`device="cpu"` is for kernels under triton's interpreter: the same launches, without graphs."""
        if device != "cpu":
            require_cuda()
        import torch

        from approxrt.runtime.cuda.decoder import GpuDecoder
        from approxrt.runtime.cuda.runner import Runner

        self.spec = artifact.decoder_spec
        self.device = torch.device(device)
        odd = [layer.head_dim for layer in self.spec.layers if layer.has_attention and layer.head_dim % 2]
        if odd:
            raise DeviceError(f"device 'cuda': heads of {odd[0]} elements cannot be cut in halves: load on the CPU")
        warn_of_cost(self.spec, artifact.tensors, stacklevel=5)
        self._decoder = GpuDecoder(self.spec, artifact.tensors, self.device, cache_tokens + SPARE_ROWS)
        self._rows = RowPool(cache_tokens + SPARE_ROWS)
        self._lock = threading.Lock()
        self._runner = Runner(self.device, self._run)

    def wait(self) -> None:
        """Weights are on the device once the engine is built: as `DecoderEngine.wait`."""

    def cache(self, capacity: int) -> GpuCache:
        """An empty cache for one sequence of at most `capacity` tokens. Raises InputError where there is no room."""
        if not 1 <= capacity <= self.spec.max_positions:
            raise InputError(f"capacity is {capacity}; it must be between 1 and {self.spec.max_positions}")
        with self._lock:
            first = self._rows.take(capacity)
            if first is None:
                raise InputError(
                    f"no {capacity} tokens in one piece are left in the GPU's cache of {self._rows.rows - SPARE_ROWS} "
                    f"({self._rows.free} are free): end other texts first, or build the engine with more cache_tokens"
                )
            return GpuCache(self._rows, first, capacity, self._row_bytes())

    def step(self, caches: Sequence[GpuCache], tokens: Sequence[Sequence[int]], all_logits: bool = False) -> np.ndarray:
        """Append tokens[i] to caches[i]; float32 [caches, vocab] of each last token, or of every token."""
        self._check(caches, tokens)
        new, before = [len(run) for run in tokens], [cache.length for cache in caches]
        block_m = self._block_m(sum(new))
        with self._lock:
            bucket = step_bucket(new, before, block_m, all_logits)
            first = [cache.first for cache in caches]
            slot = self._runner.start(
                (bucket, block_m),
                bucket.integers,
                lambda block: fill_step(block, bucket, tokens, before, first, block_m, all_logits),
                sum(new) if all_logits else len(new),
            )
            for cache, count in zip(caches, new, strict=True):
                cache.length += count
            return slot.answer()

    def prefill(self, cache: GpuCache, tokens: Sequence[int]) -> np.ndarray:
        """Append a prompt in chunks; float32 [vocab] of its last token."""
        logits = None
        for begin in range(0, len(tokens), PROMPT_CHUNK):
            logits = self.step([cache], [tokens[begin : begin + PROMPT_CHUNK]])[0]
        if logits is None:
            raise InputError("the prompt is empty: give at least one token")
        return logits

    @contextmanager
    def profiling(self) -> Iterator[dict[str, Any]]:
        """Raises DeviceError: a GPU's operators are timed from outside (torch.profiler, Nsight Systems)."""
        raise DeviceError("profiling by operator is of the CPU engine: use torch.profiler or nsys on a GPU")
        yield {}

    def info(self) -> dict[str, Any]:
        """Return what runs where."""
        import torch
        import triton

        linears = self._decoder.info()
        return {
            "device": self.device.type,
            "gpu": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "triton's interpreter",
            "torch": torch.__version__,
            "triton": triton.__version__,
            "kernels": linears,
            "cache_kind": "f16",
            "cache_bytes": self._rows.rows * self._row_bytes(),
            "packed_weight_bytes": sum(linear["bytes"] for linear in linears.values()),
            "graphs": self._runner.graphs,
        }

    def _row_bytes(self) -> int:
        """Return the bytes of one token in all layers: float16 keys and values."""
        return sum(4 * layer.num_kv_heads * layer.head_dim for layer in self.spec.layers if layer.has_attention)

    def _block_m(self, tokens: int) -> int:
        from approxrt.kernels.launch import attention_rule

        dims = [layer.head_dim for layer in self.spec.layers if layer.has_attention]
        return attention_rule(tokens, max(dims, default=64))["BLOCK_M"]

    def _run(self, key: Any, block: Any) -> Any:
        bucket, block_m = key
        return self._decoder.logits(StepViews.of(block, bucket), bucket, block_m)

    def _check(self, caches: Sequence[GpuCache], tokens: Sequence[Sequence[int]]) -> None:
        if not caches or len(caches) != len(tokens):
            raise InputError(
                f"{len(caches)} caches and {len(tokens)} lists of tokens: give as many of both, at least 1"
            )
        if len({id(cache) for cache in caches}) != len(caches):
            raise InputError("a cache is in the step twice: append a sequence's tokens in one list")
        for i, (cache, run) in enumerate(zip(caches, tokens, strict=True)):
            if not len(run):
                raise InputError(f"sequence {i} is empty: give at least one token id")
            if cache.length + len(run) > cache.capacity:
                raise InputError(
                    f"sequence {i}: {len(run)} tokens do not fit behind the {cache.length} of a cache for "
                    f"{cache.capacity}: ask for a larger cache"
                )
            low, high = min(run), max(run)
            if low < 0 or high >= self.spec.vocab_size:
                raise InputError(
                    f"sequence {i} has token id {low if low < 0 else high}; "
                    f"the vocabulary has ids 0 to {self.spec.vocab_size - 1}"
                )
