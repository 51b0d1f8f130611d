"""The CPU engine: an artifact's tensors handed to the C++ encoder, token ids in, numbers out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

import approxrt._C as _C
from approxrt.artifact.spec.decoder import RopeSpec
from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.spec.formats import LinearKind
from approxrt.errors import DeviceError
from approxrt.runtime.batching import TOKEN_BUDGET, plan_batches
from approxrt.runtime.inputs import check_sequences, refuse_per_token, require_per_token
from approxrt.runtime.relative_positions import expanded_biases
from approxrt.runtime.threads import resolve_threads, warn_of_missing_threads


class Weights(Protocol):
    """Hold what the engine needs of an artifact: its spec and tensors, on disk or in memory."""

    @property
    def spec(self) -> ModelSpec: ...

    @property
    def tensors(self) -> Mapping[str, np.ndarray]: ...


def forced_isa() -> str:
    """The level in use: `APPROXRT_ISA` if set (an error where the CPU lacks it), else the best there is."""
    try:
        return _C.resolve_isa(os.environ.get("APPROXRT_ISA", ""))
    except ValueError as error:
        raise DeviceError(str(error)) from None


# What AMX's kernels are made for: int8 sums of dense matrices, two to four times as fast as with VNNI. Sparse ones they
# multiply no faster, and sums of groups with a scale each are too short for them.
AMX_KINDS: frozenset[LinearKind] = frozenset({"f32", "s8", "s4"})


def suitable_isa(kinds: Iterable[LinearKind]) -> str:
    """The level for a model with linears of these kinds: `APPROXRT_ISA` if set, else the best for them."""
    isa = forced_isa()
    chosen = os.environ.get("APPROXRT_ISA") or isa != "amx" or AMX_KINDS.issuperset(kinds)
    return isa if chosen else "avx512vnni"


class CpuEngine:
    """Runs one model on CPU kernels. Safe to call from several threads and in forked children.

    `tuning` overrides sizes that decide how work is divided (csrc/engine/encoder/plan.h): for benchmarks. Answers stay.
    """

    def __init__(
        self,
        artifact: Weights,
        threads: int | None = None,
        tuning: Mapping[str, int] | None = None,
        wait: bool = True,
        isa: str | None = None,
    ) -> None:
        """`wait=False` returns while the weights are being packed: call `wait` before anything else.

        `isa`: a level that the CPU has, instead of the one that suits the model.
        """
        self.spec = artifact.spec
        self.threads = resolve_threads(threads)
        self.isa = isa or suitable_isa(linear.kind for _, linear in artifact.spec.linears())
        config = encoder_config(artifact.spec)
        tensors = dict(artifact.tensors) | dict(expanded_biases(artifact.spec, artifact.tensors))
        self._encoder = _C.Encoder(config, tensors, self.isa, self.threads, dict(tuning or {}))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Return when the weights are packed. From then on the artifact's tensors, embeddings apart, are not read."""
        self._encoder.wait()

    def forward(
        self,
        sequences: Sequence[Sequence[int] | np.ndarray],
        type_ids: Sequence[Sequence[int]] | None,
        output: str,
        budget: int = TOKEN_BUDGET,
    ) -> np.ndarray:
        """One row a sequence, in the order given: `output` is "logits" or "pooled".

        Returns float32 [len(sequences), num_outputs or pooled_size]. A sequence's row does
        not depend on the others in the call. Of a model whose head reads every token, logits come from `token_logits`.
        """
        if output == "logits":
            refuse_per_token(self.spec)
        arrays, types = check_sequences(self.spec, sequences, type_ids)
        columns = self.spec.num_outputs if output == "logits" else self.spec.pooled_size
        result = np.empty((len(arrays), columns), np.float32)
        for batch, _, rows in self._passes(arrays, types, output, budget):
            result[batch] = rows
        return result

    def token_logits(
        self,
        sequences: Sequence[Sequence[int] | np.ndarray],
        type_ids: Sequence[Sequence[int]] | None,
        budget: int = TOKEN_BUDGET,
    ) -> list[np.ndarray]:
        """The logits of every token of a model whose head reads them: of each sequence float32 [tokens, num_outputs].

        A sequence's logits do not depend on the others in the call.
        """
        require_per_token(self.spec)
        arrays, types = check_sequences(self.spec, sequences, type_ids)
        result: list[np.ndarray] = [np.empty(0, np.float32)] * len(arrays)
        for batch, cu_seqlens, rows in self._passes(arrays, types, "logits", budget):
            for k, i in enumerate(batch):
                result[i] = rows[cu_seqlens[k] : cu_seqlens[k + 1]]
        return result

    def _passes(
        self, arrays: list[np.ndarray], types: list[np.ndarray] | None, output: str, budget: int
    ) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
        """(indices, cu_seqlens, rows) of each pass over checked sequences."""
        lengths = [len(ids) for ids in arrays]
        for batch in plan_batches(lengths, budget):
            cu_seqlens = np.zeros(len(batch) + 1, np.int32)
            np.cumsum([lengths[i] for i in batch], out=cu_seqlens[1:])
            packed_types = None if types is None else np.concatenate([types[i] for i in batch])
            ids = np.concatenate([arrays[i] for i in batch])
            yield batch, cu_seqlens, self._encoder.forward(ids, packed_types, cu_seqlens, output)
        if missing := self._encoder.missing_threads:
            warn_of_missing_threads(self.threads, missing)

    @contextmanager
    def profiling(self) -> Iterator[dict[str, Any]]:
        """See `Model.profiling`."""
        taken: dict[str, Any] = {}
        self._encoder.take_profile()
        self._encoder.set_profiling(True)
        try:
            yield taken
        finally:
            self._encoder.set_profiling(False)
            taken.update(self._encoder.take_profile())

    def hidden(self, ids: Sequence[int], type_ids: Sequence[int] | None = None) -> np.ndarray:
        """Last hidden states of one sequence, float32 [tokens, hidden_size]."""
        (array,), types = check_sequences(self.spec, [ids], None if type_ids is None else [type_ids])
        return self._encoder.forward(
            array, None if types is None else types[0], np.array([0, len(array)], np.int32), "hidden"
        )

    def info(self) -> dict[str, Any]:
        """Return what runs where."""
        return {
            "device": "cpu",
            "isa": self.isa,
            "threads": self.threads,
            "kernels": dict(_C.chosen_kernels(self.isa)),
            "packed_weight_bytes": self._encoder.weight_bytes,
            "scratch_bytes": self._encoder.scratch_bytes,
        }


def encoder_config(spec: ModelSpec) -> dict[str, Any]:
    """The sizes that the C++ encoder is built from."""
    return {
        "vocab_size": spec.vocab_size,
        "embedding_size": spec.embedding_size,
        "hidden_size": spec.hidden_size,
        "max_positions": spec.max_positions,
        "type_vocab_size": spec.type_vocab_size,
        "norm": "layer",
        "norm_eps": spec.layer_norm_eps,
        "activation": spec.activation,
        "gated": spec.gated,
        "frequencies": _frequencies(spec),
        "layers": [
            {
                "num_heads": l.num_heads,
                "num_kv_heads": l.num_heads,
                "head_dim": l.head_dim,
                "intermediate_size": l.intermediate_size,
                "attention_keep": l.attention_keep,
                "attention_rest": l.attention_rest,
                "sign_from": l.sign_from,
            }
            for l in spec.layers
        ],
        "layer_order": list(spec.layer_order),
        "always_kept": list(spec.always_kept),
        "pooling": list(spec.head.poolings),
        "per_token": spec.per_token,
        "projections": [dataclasses.asdict(projection) for projection in spec.head.projections],
        "dense_features": spec.head.dense_features or 0,
        "dense_activation": spec.head.dense_activation,
        "num_outputs": spec.num_outputs,
    }


def _frequencies(spec: ModelSpec) -> np.ndarray:
    """f32[head_dim / 2] by which queries and keys are turned; empty: they are not."""
    dims = {layer.head_dim for layer in spec.layers if layer.has_attention}
    return RopeSpec(spec.rope_theta).frequencies(dims.pop()) if spec.rope_theta and dims else np.zeros(0, np.float32)
