"""Dynamic batching: texts of concurrent requests share forward passes.

One pass runs at a time, on all of the engine's threads; texts that come meanwhile wait and share the next ones, in a
fair order (`approxrt.serving.fairness`) and up to a number of tokens: as many as take about `PASS_MS` here, since who
comes waits for the pass under way. Only beside a slice of a large request, which may be a single long text, small
requests have passes of their own: the engine's threads are shared then. An idle engine starts at once (or after
`wait_ms`), so a lone client pays nothing for batching. A text's answer does not depend on what it shared a pass with.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from approxrt.errors import NumericsError
from approxrt.runtime.failures import as_error, check_finite
from approxrt.serving.errors import Overloaded, TooLarge, Unavailable
from approxrt.serving.fairness import CLIENT, FairQueue, WaitingText
from approxrt.serving.metrics import Metrics
from approxrt.serving.settings import Settings

# (token ids, token types, "logits" or "pooled") -> float32 [n, width]; of a head that reads every token, of each text
# [tokens, width]
Forward = Callable[[list[list[int]], list[list[int]], str], np.ndarray | list[np.ndarray]]

# How long a pass should take: of small requests, and a slice of a large one; but not fewer tokens than the engine needs
# to be about as fast as it can be.
PASS_MS, SLICE_MS = 40.0, 4.0
LEAST_PASS, LEAST_SLICE = 512, 128
# A pass that is likely to be shorter runs on the event loop: a thread of its own would be woken, and wake the loop,
# which takes a tenth of a millisecond where cores go to sleep in between.
INLINE_S = 2e-3


class Batcher:
    """The queue in front of one model's engine. All methods belong to one event loop."""

    def __init__(self, name: str, forward: Forward, settings: Settings, metrics: Metrics) -> None:
        self._name, self._forward, self._settings = name, forward, settings
        self._queue = FairQueue(LEAST_SLICE)
        self._pace = 0.0  # seconds a token, of passes of some size
        self._short_pace = 0.0  # of smaller ones
        self._calls: set[Future[np.ndarray]] = set()  # functions of the model that run or wait for their turn
        self._arrived = asyncio.Event()
        self._executor, self._beside = (ThreadPoolExecutor(1, f"approxrt-{name}-{i}") for i in range(2))
        self._running: dict[ThreadPoolExecutor, list[WaitingText]] = {}
        self._slicing = False  # a slice of a large request is under way
        self._small_beside = asyncio.Event()  # meanwhile a small one waits
        self._tasks: list[asyncio.Task[None]] = []
        self._rejected = metrics.rejected.labels(name)
        self._waited = metrics.waited.labels(name)
        self._size, self._tokens = metrics.batch_size.labels(name), metrics.batch_tokens.labels(name)
        self._read = metrics.tokens.labels(name)
        self._failed = metrics.failed
        metrics.queue.labels(name).set_function(lambda: len(self._queue))

    @property
    def waiting_tokens(self) -> int:
        """Tokens in the queue."""
        return self._queue.tokens

    async def submit(self, ids: Sequence[list[int]], types: Sequence[list[int]], output: str) -> np.ndarray:
        """float32 [len(ids), width]. Raises Overloaded when the queue is full, Unavailable after the timeout, TooLarge
        for a request of too many tokens, and what is wrong with a text's answer.

        A caller that is cancelled takes its texts out of the queue.
        """
        return np.stack(await self.submit_rows(ids, types, output))

    async def submit_rows(self, ids: Sequence[list[int]], types: Sequence[list[int]], output: str) -> list[np.ndarray]:
        """The same, an array for each text: float32 [width], or [tokens, width] of a head that reads every token."""
        tokens, most = sum(map(len, ids)), self._settings.max_request_tokens
        if tokens > most:
            raise TooLarge(f"the request has {tokens} tokens; the limit is {most}: send its texts in several requests")
        if not self._tasks:
            self._tasks = [asyncio.create_task(work()) for work in (self._serve, self._serve_beside, self._sweep)]
        if self._tasks[0].done():
            raise Unavailable("the server is shutting down")
        client = CLIENT.get()
        if not self._queue.has_room(client, len(ids), self._settings.max_queue):
            self._rejected.inc()
            raise Overloaded(
                f"{len(self._queue)} texts wait for model {self._name!r}, the limit is {self._settings.max_queue}: "
                "try again later",
                retry_after=1,
            )
        loop = asyncio.get_running_loop()
        waiting = [WaitingText(a, b, output, loop.create_future()) for a, b in zip(ids, types, strict=True)]
        self._queue.add(client, waiting)
        self._arrived.set()
        if self._slicing and self._queue.has_small:
            self._small_beside.set()
        try:
            return [await item.future for item in waiting]
        finally:
            for item in waiting:
                if item.future.done() and not item.future.cancelled():
                    item.future.exception()  # looked at, so that asyncio does not report the others' copies
                item.future.cancel()

    async def alone(self, function: Callable[..., np.ndarray], *arguments: Any) -> np.ndarray:
        """Return what a function of the model gives, in a turn of its own between passes."""
        call = self._executor.submit(function, *arguments)
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)  # in its thread, and not before it ends: a caller may leave
        return await asyncio.wrap_future(call)

    async def close(self) -> None:
        """Stop when the queue is empty."""
        while self._queue:
            await asyncio.sleep(0.005)
        for task in self._tasks:
            task.cancel()
        for executor in (self._executor, self._beside):
            executor.shutdown(wait=True)

    async def _serve(self) -> None:
        while True:
            await self._arrived.wait()
            if self._settings.wait_ms and len(self._queue) < self._settings.max_queue:
                await asyncio.sleep(self._settings.wait_ms / 1e3)
            batch = self._take()
            if not batch:
                continue
            if self._is_short(batch):
                self._answer(batch, self._pass(batch))
                await asyncio.sleep(0)  # who else is ready has a turn before the next pass
                continue
            self._slicing = self._queue.took_large
            if self._slicing and self._queue.has_small:
                self._small_beside.set()
            await self._run(self._executor, batch)
            self._slicing = False

    async def _serve_beside(self) -> None:
        while True:
            await self._small_beside.wait()
            self._small_beside.clear()
            while self._slicing and self._queue.has_small:
                batch = self._queue.take_small(self._room())
                if batch:
                    await self._run(self._beside, batch)

    async def _run(self, executor: ThreadPoolExecutor, batch: list[WaitingText]) -> None:
        self._running[executor] = batch
        self._answer(batch, await asyncio.get_running_loop().run_in_executor(executor, self._pass, batch))
        del self._running[executor]

    def _answer(self, batch: list[WaitingText], rows: Sequence[np.ndarray | Exception]) -> None:
        for item, row in zip(batch, rows, strict=True):
            if isinstance(row, Exception):
                self._failed.labels(self._name, type(row).__name__).inc()
            if item.future.done():
                continue
            if isinstance(row, Exception):
                item.future.set_exception(row)
            else:
                item.future.set_result(row)

    def _is_short(self, batch: list[WaitingText]) -> bool:
        tokens = sum(len(item.ids) for item in batch)
        return not self._calls and not self._running and 0 < tokens * self._short_pace < INLINE_S

    async def _sweep(self) -> None:
        """Tell those who have waited too long. One task for all: a timer a request would cost more than the rest."""
        limit = self._settings.timeout_s
        while True:
            await asyncio.sleep(min(0.5, limit / 4))
            late = time.perf_counter() - limit
            for item in [*self._queue, *itertools.chain(*self._running.values())]:
                if item.since < late and not item.future.done():
                    text = f"no answer within {limit:g} s: the server is too busy; try again"
                    item.future.set_exception(Unavailable(text, retry_after=1))

    def _take(self) -> list[WaitingText]:
        """The texts of the next pass, as many as are likely to be answered soon."""
        if self._pace:
            most = self._settings.max_batch_tokens
            self._queue.slice_tokens = min(most, max(LEAST_SLICE, int(SLICE_MS / 1e3 / self._pace)))
        batch = self._queue.take(self._room())
        if not self._queue:
            self._arrived.clear()
        return batch

    def _room(self) -> int:
        most = self._settings.max_batch_tokens
        return min(most, max(LEAST_PASS, int(PASS_MS / 1e3 / self._pace))) if self._pace else most

    def _pass(self, batch: list[WaitingText]) -> Sequence[np.ndarray | Exception]:
        now, tokens = time.perf_counter(), sum(len(item.ids) for item in batch)
        rows = self._rows(batch)
        pace = (time.perf_counter() - now) / max(tokens, 1)
        if len(self._running) > 1:
            pass  # two passes share the threads: neither says how fast one is
        elif tokens >= LEAST_SLICE:
            self._pace = 0.8 * self._pace + 0.2 * pace if self._pace else pace
        else:
            self._short_pace = 0.8 * self._short_pace + 0.2 * pace if self._short_pace else pace
        for item in batch:
            self._waited.observe(now - item.since)
        self._size.observe(len(batch))
        self._tokens.observe(tokens)
        self._read.inc(tokens)
        return rows

    def _rows(self, batch: list[WaitingText]) -> list[np.ndarray | Exception]:
        """Return each text's answer, or what is wrong with it; where a pass fails, texts are asked one by one."""
        try:
            rows = self._forward([item.ids for item in batch], [item.types for item in batch], batch[0].output)
        except BaseException as error:
            found = as_error(error)
            return [found] if len(batch) == 1 else [row for item in batch for row in self._rows([item])]
        if isinstance(rows, np.ndarray) and np.isfinite(rows).all():
            return list(rows)
        return [_checked(row) for row in rows]


def _checked(row: np.ndarray) -> np.ndarray | Exception:
    try:
        check_finite(np.abs(row), "the text")
    except NumericsError as error:
        return error
    return row
