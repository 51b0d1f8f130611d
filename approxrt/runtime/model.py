"""The public object: an artifact that answers. What encoders and decoders have in common; `approxrt.load` chooses."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn

from approxrt.artifact.reader import Artifact
from approxrt.errors import UnsupportedTaskError


@dataclass(frozen=True)
class Prediction:
    """One answer to one text.

    label      the class, or the target's name for a regression
    score      what the checkpoint's own library makes of the output: a softmax probability (classification), a
               sigmoid's (multi-label, a single output), the value (regression, a CrossEncoder that names Identity)
    truncated  the text was longer than the model's limit and its end was not read
    """

    label: str
    score: float
    truncated: bool = False


class Model(ABC):
    """A loaded artifact: an `EncoderModel` or a `DecoderModel`. Methods may be called from several threads at once.

    What only the other kind of model can do raises UnsupportedTaskError, which says what this one can.
    """

    # The methods of each kind, for the error of the other.
    ENCODERS: ClassVar[frozenset[str]] = frozenset(
        (
            "classify", "logits", "embed", "prompt", "pooled", "encode", "forward_ids", "hidden_states", "scores",
            "token_logits", "forward_tokens", "tag", "answer", "tagger", "answerer", "spec",
        )
    )  # fmt: skip
    DECODERS: ClassVar[frozenset[str]] = frozenset(
        ("generate", "generate_async", "generate_many", "tokenize", "request", "begin", "engine", "decoder_spec")
    )

    PROPERTIES: ClassVar[frozenset[str]] = frozenset(("spec", "engine", "decoder_spec", "tagger", "answerer"))

    def __init__(self, artifact: Artifact) -> None:
        self.path = artifact.path
        self._artifact = artifact

    @property
    @abstractmethod
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of `logits`' columns; none for a model without classes."""

    @property
    @abstractmethod
    def _runner(self) -> Any:
        """The engine."""

    @abstractmethod
    def _instead(self) -> str:
        """Return what the model is, and what to use."""

    @property
    def info(self) -> dict[str, Any]:
        """Sizes, density, kinds and kernels by layer, the instruction set in use."""
        from approxrt.artifact.summary import summarize

        return {**summarize(self._artifact), **self._runner.info()}

    @contextmanager
    def profiling(self) -> Iterator[dict[str, Any]]:
        """Time the engine's passes by operator while the block runs.

        Yields a dict that is filled at the end: `passes` (of the engine: a call of many tokens makes several),
        `wall_ns` and `ops`, each {op, calls, ns, macs}, summed over threads and passes. One block at a time.
        """
        with self._runner.profiling() as taken:
            yield taken

    def __getattr__(self, name: str) -> Any:
        # Reached for names that this kind of model lacks.
        if name in self.ENCODERS | self.DECODERS:
            message = f"{name}: {os.fspath(self.path)!r} is {self._instead()}"
            if name in self.PROPERTIES:
                raise _Lacking(message)

            def refuse(*args: Any, **options: Any) -> NoReturn:
                raise UnsupportedTaskError(message)

            return refuse
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class _Lacking(UnsupportedTaskError, AttributeError):
    """An attribute error, too, so that `hasattr` and `getattr` with a default see a property that is not there."""
