"""The GPU engine: token ids in, numbers out, as the CPU engine's `CpuEngine`.

Answers are those of the CPU engine within float16's rounding of hidden states and attention: the same int8 weights
and the same quantiser, so that a difference is now and then one step of one quantised input. A sequence's row does not
depend on the others of a call: integer sums are exact, and every float sum is taken in an order that the sequence
alone decides.

Passes of one bucket (`gpu_plan`) replay one CUDA graph (`gpu_runner`); the next pass is written while the device works.
"""

from __future__ import annotations

import importlib.util
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.artifact.spec.decoder import AnySpec, DecoderSpec
from approxrt.errors import DeviceError, MissingDependencyError, TargetWarning
from approxrt.runtime.batching import plan_batches
from approxrt.runtime.cuda.layout import model_cost, model_layouts
from approxrt.runtime.cuda.plan import TOKEN_BUDGET, PassViews, bucket_of, fill_pass
from approxrt.runtime.inputs import check_sequences, refuse_per_token, require_per_token

if TYPE_CHECKING:
    from approxrt.runtime.cpu.engine import Weights
    from approxrt.runtime.cuda.runner import Slot

LOWEST_CAPABILITY = (8, 0)
WORTH_A_WARNING = 1.1  # products executed for each one stored


def require_cuda() -> None:
    """Raises what says how to get there when torch, triton or a fitting GPU is missing."""
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "cuda", "device 'cuda'")
    import torch

    if not torch.cuda.is_available():
        build = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        raise DeviceError(
            f"device 'cuda': torch {torch.__version__} {build} and sees no GPU; it needs an NVIDIA GPU with its driver "
            "and a CUDA build of torch (https://pytorch.org/get-started), or load with device='cpu'"
        )
    capability = torch.cuda.get_device_capability()
    if capability < LOWEST_CAPABILITY:
        raise DeviceError(
            f"device 'cuda': {torch.cuda.get_device_name()} has compute capability {capability[0]}.{capability[1]}; "
            "the kernels need 8.0 or later (Ampere); load with device='cpu'"
        )


def unsupported(spec: AnySpec) -> list[str]:
    """Return what a model has that the GPU's engine does not run, in words."""
    if isinstance(spec, DecoderSpec):
        return []
    found = {
        "a bias of attention scores by relative position": bool(spec.relative_buckets),
        "layers that are shared": bool(spec.layer_order),
        "rotary positions": bool(spec.rope_theta),
        "a gate in the feed-forward": spec.gated,
        f"pooling {spec.head.pooling}": spec.head.pooling not in ("cls", "mean"),
        "linears behind the pooling": bool(spec.head.projections),
    }
    return [name for name, there in found.items() if there]


def refuse_unsupported(spec: AnySpec) -> None:
    """Raise DeviceError for what the GPU's engine does not run."""
    if lacking := unsupported(spec):
        raise DeviceError(
            f"device 'cuda': this model ({spec.architecture}) has {' and '.join(lacking)}, which the GPU's engine does "
            "not run; load with device='cpu'"
        )


def warn_of_cost(spec: AnySpec, tensors: Mapping[str, np.ndarray], stacklevel: int) -> None:
    """A TargetWarning where the GPU does more than the artifact asks for, since that was made for a CPU."""
    cost = model_cost(model_layouts(spec, tensors))
    if cost > WORTH_A_WARNING:
        warnings.warn(
            f"this artifact's tiles suit a CPU: the GPU executes {cost:.1f} products for each one stored; "
            "convert for it with --target cuda (`approxrt inspect` shows every linear)",
            TargetWarning,
            stacklevel=stacklevel + 1,
        )
    if not isinstance(spec, DecoderSpec):
        return
    matching = [layer for layer in spec.layers if layer.attention_keep]
    if matching:
        warnings.warn(
            f"{len(matching)} layers of this decoder match signs on a CPU; the GPU attends to all keys, which is what "
            "they approximate",
            TargetWarning,
            stacklevel=stacklevel + 1,
        )


class CudaEngine:
    """Runs one model on a GPU. Safe to call from several threads, which take turns; not across a fork."""

    def __init__(self, artifact: Weights, device: str = "cuda") -> None:
        """`device="cpu"` is for kernels under triton's interpreter: the same launches, without graphs."""
        refuse_unsupported(artifact.spec)
        if device != "cpu":
            require_cuda()
        import torch

        from approxrt.runtime.cuda.encoder import GpuEncoder
        from approxrt.runtime.cuda.runner import Runner

        self.spec = artifact.spec
        warn_of_cost(self.spec, artifact.tensors, stacklevel=5)
        self.device = torch.device(device)
        self._encoder = GpuEncoder(artifact.spec, artifact.tensors, self.device)
        self._head_dims = [layer.head_dim for layer in self.spec.layers if layer.has_attention]
        self._matches_signs = any(layer.attention_keep for layer in self.spec.layers)
        self._lock = threading.Lock()
        self._runner = Runner(self.device, self._run)

    def forward(
        self,
        sequences: Sequence[Sequence[int] | np.ndarray],
        type_ids: Sequence[Sequence[int]] | None,
        output: str,
        budget: int = TOKEN_BUDGET,
    ) -> np.ndarray:
        """One row a sequence, in the order given: `output` is "logits" or "pooled".

        Returns float32 [len(sequences), num_outputs or hidden_size]. Of a model whose head reads every token, logits
        come from `token_logits`.
        """
        if output == "logits":
            refuse_per_token(self.spec)
        arrays, types = check_sequences(self.spec, sequences, type_ids)
        columns = self.spec.num_outputs if output == "logits" else self.spec.hidden_size
        result = np.empty((len(arrays), columns), np.float32)
        with self._lock:
            waiting: tuple[list[int], Slot] | None = None
            for batch in plan_batches([len(ids) for ids in arrays], budget):
                kinds = None if types is None else [types[i] for i in batch]
                slot = self._start([arrays[i] for i in batch], kinds, output)
                if waiting is not None:
                    result[waiting[0]] = waiting[1].answer()
                waiting = batch, slot
            if waiting is not None:
                result[waiting[0]] = waiting[1].answer()
        return result

    def token_logits(
        self,
        sequences: Sequence[Sequence[int] | np.ndarray],
        type_ids: Sequence[Sequence[int]] | None,
        budget: int = TOKEN_BUDGET,
    ) -> list[np.ndarray]:
        """The logits of every token, where the head reads them: of each sequence float32 [tokens, num_outputs]."""
        require_per_token(self.spec)
        arrays, types = check_sequences(self.spec, sequences, type_ids)
        result: list[np.ndarray] = [np.empty(0, np.float32)] * len(arrays)
        with self._lock:
            for batch in plan_batches([len(ids) for ids in arrays], budget):
                kinds = None if types is None else [types[i] for i in batch]
                rows = self._start([arrays[i] for i in batch], kinds, "logits").answer()
                ends = np.cumsum([len(arrays[i]) for i in batch])
                for i, part in zip(batch, np.split(rows, ends[:-1]), strict=True):
                    result[i] = part
        return result

    def hidden(self, ids: Sequence[int], type_ids: Sequence[int] | None = None) -> np.ndarray:
        """Last hidden states of one sequence, float32 [tokens, hidden_size]."""
        arrays, types = check_sequences(self.spec, [ids], None if type_ids is None else [type_ids])
        with self._lock:
            return self._start(arrays, types, "hidden").answer()

    def wait(self) -> None:
        """Weights are on the device once the engine is built: as `CpuEngine.wait`."""

    @contextmanager
    def profiling(self) -> Iterator[dict[str, Any]]:
        """Raises DeviceError: a GPU's operators are timed from outside (torch.profiler, Nsight Systems)."""
        raise DeviceError("profiling by operator is of the CPU engine: use torch.profiler or nsys on a GPU")
        yield {}

    def info(self) -> dict[str, Any]:
        """Return what runs where."""
        import torch
        import triton

        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "triton's interpreter"
        linears = self._encoder.info()
        return {
            "device": self.device.type,
            "gpu": name,
            "torch": torch.__version__,
            "triton": triton.__version__,
            "kernels": linears,
            "packed_weight_bytes": sum(linear["bytes"] for linear in linears.values()),
            "graphs": self._runner.graphs,
        }

    # -- one pass ------------------------------------------------------------

    def _block_m(self, tokens: int) -> int:
        """Queries of an attention tile: one size for all layers, since they share the table of tiles."""
        from approxrt.kernels.launch import attention_rule
        from approxrt.kernels.sign_attention import TILE

        if self._matches_signs:
            return TILE
        return attention_rule(tokens, max(self._head_dims, default=64))["BLOCK_M"]

    def _start(self, ids: list[np.ndarray], types: list[np.ndarray] | None, output: str) -> Slot:
        """Launch the pass; its rows will be in the slot."""
        lengths = [len(sequence) for sequence in ids]
        block_m = self._block_m(sum(lengths))
        bucket = bucket_of(lengths, block_m)
        return self._runner.start(
            (bucket, block_m, output),
            bucket.integers,
            lambda block: fill_pass(block, bucket, ids, types, block_m),
            sum(lengths) if output == "hidden" or (output == "logits" and self.spec.per_token) else len(ids),
        )

    def _run(self, key: Any, block: Any) -> Any:
        bucket, block_m, output = key
        return getattr(self._encoder, output)(PassViews.of(block, bucket), block_m)
