"""Continuous batching: texts that are being generated share the engine's steps and come and go independently.

A place that becomes free goes to the next client in turn, whose texts come in their order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from approxrt.runtime.decoder_model import DecoderModel
from approxrt.runtime.generation.sequences import Request, Sequence, step
from approxrt.serving.errors import Overloaded, Unavailable
from approxrt.serving.fairness import CLIENT, Turns
from approxrt.serving.metrics import Metrics
from approxrt.serving.settings import Settings


@dataclass(frozen=True)
class Piece:
    """Some more of a text. `finish_reason` (as in `Sequence`) is None until the last one."""

    text: str
    finish_reason: str | None
    new_tokens: int


class _Job:
    """One text: waiting, or active once it has a sequence."""

    def __init__(self, request: Request) -> None:
        self.request, self.since = request, time.perf_counter()
        self.sequence: Sequence | None = None  # while it is under way
        self.begun = False
        self.pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        self.left = False


class Growing:
    """A text that was admitted: an asynchronous iterator over its pieces. `leave` gives its place to another."""

    def __init__(self, job: _Job, pieces: AsyncIterator[Piece]) -> None:
        self._job, self._pieces = job, pieces

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._pieces

    def leave(self) -> None:
        """Nobody reads on; a text that is finished is left alone."""
        self._job.left = True


class Generator:
    """The texts of one model. All methods belong to one event loop; steps run on a thread of their own."""

    def __init__(self, name: str, model: DecoderModel, settings: Settings, metrics: Metrics) -> None:
        self._name, self._model, self._settings = name, model, settings
        self._waiting = Turns[_Job]()
        self._active: list[_Job] = []
        self._arrived = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"approxrt-{name}")
        self._task: asyncio.Task[None] | None = None
        self._rejected, self._waited = metrics.rejected.labels(name), metrics.waited.labels(name)
        self._size, self._read = metrics.batch_size.labels(name), metrics.tokens.labels(name)
        self._failed = metrics.failed
        metrics.queue.labels(name).set_function(lambda: len(self._waiting))

    def admit(self, request: Request) -> Growing:
        """The text's pieces as they come. Raises Overloaded at once when too many wait."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())
        if self._task.done():
            raise Unavailable("the server is shutting down")
        if len(self._waiting) >= self._settings.max_queue:
            self._rejected.inc()
            raise Overloaded(
                f"{len(self._waiting)} texts wait for model {self._name!r}, the limit is {self._settings.max_queue}: "
                "try again later",
                retry_after=1,
            )
        job = _Job(request)
        self._waiting.add(CLIENT.get(), job)
        self._arrived.set()
        return Growing(job, self._follow(job))

    async def _follow(self, job: _Job) -> AsyncIterator[Piece]:
        try:
            while True:
                if not job.begun:
                    piece = await self._first(job)
                else:
                    piece = await job.pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
                if piece.finish_reason is not None:
                    return
        finally:
            job.left = True

    async def _first(self, job: _Job) -> Piece | Exception:
        """The first piece; only the wait for a place has a limit, not the text."""
        limit = self._settings.timeout_s
        try:
            return await asyncio.wait_for(job.pieces.get(), limit)
        except asyncio.TimeoutError:
            if job.begun:
                return await job.pieces.get()
            return Unavailable(f"no place within {limit:g} s: the server is too busy; try again", retry_after=1)

    async def close(self) -> None:
        """Stop when all texts are finished."""
        while self._waiting or self._active:
            await asyncio.sleep(0.005)
        if self._task is not None:
            self._task.cancel()
        self._executor.shutdown(wait=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            self._admit_waiting()
            if not self._active:
                self._arrived.clear()
                continue
            sequences = [job.sequence for job in self._active if job.sequence is not None]
            before = [len(sequence.pending) for sequence in sequences]
            try:
                results = await loop.run_in_executor(self._executor, step, self._model.engine, sequences)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # whoever is under way gets it; the next text begins anew
                for job in self._active:
                    job.pieces.put_nowait(error)
                self._active = []
                continue
            self._size.observe(len(sequences))
            texts = {id(sequence): text for sequence, text in results}
            # Who has a next token has had all of its pending ones read; what is pending now is new.
            left = [0 if id(sequence) in texts else len(sequence.pending) for sequence in sequences]
            self._read.inc(sum(before) - sum(left))
            for job in self._active:
                sequence = job.sequence
                if sequence is None or id(sequence) not in texts:
                    continue
                if sequence.error is not None:
                    self._failed.labels(self._name, type(sequence.error).__name__).inc()
                    job.pieces.put_nowait(sequence.error)
                    continue
                text = texts[id(sequence)]
                if text or sequence.finish_reason is not None:
                    job.pieces.put_nowait(Piece(text, sequence.finish_reason, len(sequence.new)))
            # Whoever reads the pieces runs now, and may leave, before the next step.
            await asyncio.sleep(0)

    def _admit_waiting(self) -> None:
        under_way = [j for j in self._active if not j.left and j.sequence and j.sequence.finish_reason is None]
        for job in set(self._active) - set(under_way):
            job.sequence = None  # with its cache: whoever reads its pieces may take a while
        self._active = under_way
        while self._waiting and len(self._active) < self._settings.max_sequences:
            job = self._waiting.pop()
            if job.left:
                continue
            try:
                job.sequence = self._model.begin(job.request)
            except Exception as error:  # no memory for its cache
                job.pieces.put_nowait(error)
                continue
            job.begun = True
            self._waited.observe(time.perf_counter() - job.since)
            self._active.append(job)
