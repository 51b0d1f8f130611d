"""Sequences that grow: one alone, or several that share steps and come and go independently (continuous batching).

A `Sequence` is everything that belongs to one text: its cache, its sampler, what of it may be shown. `grow` and
`grow_together` step the engine. A text does not depend on which others it shares steps with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.runtime.cpu.decoder_engine import PROMPT_CHUNK, DecoderEngine
from approxrt.runtime.failures import as_error, check_finite, panics_as_errors
from approxrt.runtime.generation.sampling import Sampler, Sampling
from approxrt.runtime.generation.streaming import StopFilter, TextStream, hidden_tokens


@dataclass(frozen=True)
class Request:
    """A checked prompt and how to go on from it."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    stop: tuple[str, ...]
    eos_token_ids: frozenset[int]


class Sequence:
    """One text in the making. `finish_reason` is None until it is "eos", "stop", "length" or, with `error`, "error"."""

    def __init__(
        self, engine: DecoderEngine, tokenizer: Any, request: Request, hidden: Mapping[int, str] | None = None
    ) -> None:
        """`hidden` are the tokenizer's special tokens (`approxrt.runtime.generation.streaming.hidden_tokens`)."""
        self.request = request
        self.new: list[int] = []  # ids, without the one that ended the text
        self.finish_reason: str | None = None
        self.error: Exception | None = None
        self.pending = list(request.prompt)  # not yet in the cache
        # The last new token is never read, so it needs no place.
        self.cache = engine.cache(len(request.prompt) + request.max_new_tokens - 1)
        self._sampler = Sampler(request.sampling)
        self._stream = TextStream(tokenizer, request.prompt)
        self._hidden = hidden_tokens(tokenizer) if hidden is None else hidden
        self._filter = StopFilter(request.stop)

    def accept(self, logits: np.ndarray) -> str:
        """Choose the next token from what the engine says of it; the text that may be shown now.

        Raises NumericsError for logits that say nothing.
        """
        check_finite(logits, f"token {len(self.new)} of the text")
        token = self._sampler.choose(logits, self.request.prompt + self.new)
        if token in self.request.eos_token_ids:
            return self._finish("eos")
        self.new.append(token)
        text = self._filter.add(self._stream.add(token))
        if token in self._hidden:
            text += self._filter.add(self._hidden[token], hidden=True)
        if self._filter.stopped:
            self.finish_reason = "stop"
            return text
        if len(self.new) == self.request.max_new_tokens:
            return text + self._finish("length")
        self.pending = [token]
        return text

    def fail(self, error: Exception) -> None:
        """End the text by an error."""
        self.error, self.finish_reason, self.pending = error, "error", []

    def _finish(self, reason: str) -> str:
        self.finish_reason = reason
        text = self._filter.add(self._stream.finish())
        if self._filter.stopped:
            self.finish_reason = "stop"
            return text
        return text + self._filter.finish()


def step(engine: DecoderEngine, sequences: list[Sequence], budget: int = PROMPT_CHUNK) -> list[tuple[Sequence, str]]:
    """One step of the engine for all; those whose prompts are read by now have their next token and its text.

    What goes wrong with one text, in the engine or in choosing its token, ends that one (`Sequence.error`). Prompts are
    read in pieces: together with the single tokens of the others a step has at most about `budget` tokens.
    """
    room = budget
    taken: list[tuple[Sequence, list[int]]] = []
    # Single tokens first: texts that are under way do not wait for a newcomer's long prompt.
    for sequence in sorted(sequences, key=lambda s: len(s.pending) > 1):
        piece = sequence.pending[: max(room, 0)]
        if piece:
            taken.append((sequence, piece))
            room -= len(piece)
    results = []
    for row, (sequence, piece) in zip(_logits(engine, taken), taken, strict=True):
        sequence.pending = sequence.pending[len(piece) :]
        if isinstance(row, Exception):
            sequence.fail(row)
            results.append((sequence, ""))
        elif not sequence.pending:
            results.append((sequence, _accepted(sequence, row)))
    return results


def _logits(engine: DecoderEngine, taken: list[tuple[Sequence, list[int]]]) -> Iterable[np.ndarray | Exception]:
    """Return float32 [vocab] of each sequence, or what the engine raises of it; one after the other where all fail."""
    lengths = [sequence.cache.length for sequence, _ in taken]
    try:
        return engine.step([sequence.cache for sequence, _ in taken], [piece for _, piece in taken])
    except Exception as error:
        if len(taken) == 1:
            return [error]
    found: list[np.ndarray | Exception] = []
    for (sequence, piece), length in zip(taken, lengths, strict=True):
        # A step that failed may have written some layers' keys.
        sequence.cache.truncate(length)
        found.extend(_logits(engine, [(sequence, piece)]))
    return found


def _accepted(sequence: Sequence, logits: np.ndarray) -> str:
    try:
        with panics_as_errors("the text that is being generated"):
            return sequence.accept(logits)
    except BaseException as error:
        sequence.fail(as_error(error))
        return ""


def grow(engine: DecoderEngine, sequence: Sequence) -> Iterator[str]:
    """The sequence's text, piece by piece, until it is finished. Raises what ends it otherwise."""
    while sequence.finish_reason is None:
        for _, text in step(engine, [sequence]):
            if text:
                yield text
    if sequence.error is not None:
        raise sequence.error


def grow_together(engine: DecoderEngine, sequences: Iterable[Sequence], at_once: int) -> Iterator[tuple[Sequence, str]]:
    """Return (sequence, piece of its text) as they come; at most `at_once` are under way, and one that ends makes room.

    `sequences` is read as room is made, so that a cache is allocated when its text begins.
    """
    waiting, active = iter(sequences), deque[Sequence]()
    exhausted = False
    while True:
        while not exhausted and len(active) < at_once:
            try:
                active.append(next(waiting))
            except StopIteration:
                exhausted = True
        if not active:
            return
        for sequence, text in step(engine, list(active)):
            if sequence.error is not None:
                raise sequence.error
            yield sequence, text
        active = deque(s for s in active if s.finish_reason is None)
