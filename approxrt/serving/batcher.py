"""Dynamic batching: texts of concurrent requests share forward passes.

One pass runs at a time, on all of the engine's threads; texts that come meanwhile wait and share the next one, up to
a number of tokens. An idle engine starts at once (or after `wait_ms`), so a lone client pays nothing for batching. A
text's answer does not depend on what it shared a pass with.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from approxrt.serving.errors import Overloaded, Unavailable
from approxrt.serving.metrics import Metrics
from approxrt.serving.settings import Settings

# (token ids, token types, "logits" or "pooled") -> float32 [n, width]
Forward = Callable[[list[list[int]], list[list[int]], str], np.ndarray]


class _Waiting:
    """One text in the queue."""

    __slots__ = ("future", "ids", "output", "since", "types")

    def __init__(self, ids: list[int], types: list[int], output: str, future: asyncio.Future[np.ndarray]) -> None:
        self.ids, self.types, self.output, self.future = ids, types, output, future
        self.since = time.perf_counter()


class Batcher:
    """The queue in front of one model's engine. All methods belong to one event loop."""

    def __init__(self, name: str, forward: Forward, settings: Settings, metrics: Metrics) -> None:
        self._name, self._forward, self._settings = name, forward, settings
        self._queue: deque[_Waiting] = deque()
        self._running: list[_Waiting] = []
        self._arrived = asyncio.Event()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"approxrt-{name}")
        self._task: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self.waiting_tokens = 0  # in the queue
        self._rejected = metrics.rejected.labels(name)
        self._waited = metrics.waited.labels(name)
        self._size, self._tokens = metrics.batch_size.labels(name), metrics.batch_tokens.labels(name)
        self._read = metrics.tokens.labels(name)
        metrics.queue.labels(name).set_function(lambda: len(self._queue))

    async def submit(self, ids: Sequence[list[int]], types: Sequence[list[int]], output: str) -> np.ndarray:
        """float32 [len(ids), width]. Raises Overloaded when the queue is full, Unavailable after the timeout.

        A caller that is cancelled takes its texts out of the queue.
        """
        if self._task is None:
            loop = asyncio.get_running_loop()
            self._task, self._sweeper = loop.create_task(self._serve()), loop.create_task(self._sweep())
        if self._task.done():
            raise Unavailable("the server is shutting down")
        if len(self._queue) + len(ids) > self._settings.max_queue and self._queue:
            self._rejected.inc()
            raise Overloaded(
                f"{len(self._queue)} texts wait for model {self._name!r}, the limit is {self._settings.max_queue}: "
                "try again later",
                retry_after=1,
            )
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(a, b, output, loop.create_future()) for a, b in zip(ids, types, strict=True)]
        self._queue.extend(waiting)
        self.waiting_tokens += sum(len(item.ids) for item in waiting)
        self._arrived.set()
        try:
            return np.stack([await item.future for item in waiting])
        finally:
            for item in waiting:
                if item.future.done() and not item.future.cancelled():
                    item.future.exception()  # looked at, so that asyncio does not report the others' copies
                item.future.cancel()

    async def alone(self, function: Callable[..., np.ndarray], *arguments: Any) -> np.ndarray:
        """Return what a function of the model gives, in a turn of its own between passes."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)

    async def close(self) -> None:
        """Stop when the queue is empty."""
        while self._queue:
            await asyncio.sleep(0.005)
        if self._task is not None and self._sweeper is not None:
            self._task.cancel()
            self._sweeper.cancel()
        self._executor.shutdown(wait=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if self._settings.wait_ms and len(self._queue) < self._settings.max_queue:
                await asyncio.sleep(self._settings.wait_ms / 1e3)
            batch = self._running = self._take()
            if not batch:
                continue
            try:
                rows = await loop.run_in_executor(self._executor, self._pass, batch)
            except asyncio.CancelledError:
                raise
            except Exception as error:  # whoever asked gets it; the next pass goes on
                for item in batch:
                    if not item.future.done():
                        item.future.set_exception(error)
                continue
            for item, row in zip(batch, rows, strict=True):
                if not item.future.done():
                    item.future.set_result(row)

    async def _sweep(self) -> None:
        """Tell those who have waited too long. One task for all: a timer a request would cost more than the rest."""
        limit = self._settings.timeout_s
        while True:
            await asyncio.sleep(min(0.5, limit / 4))
            late = time.perf_counter() - limit
            for item in [*self._queue, *self._running]:
                if item.since < late and not item.future.done():
                    text = f"no answer within {limit:g} s: the server is too busy; try again"
                    item.future.set_exception(Unavailable(text, retry_after=1))

    def _take(self) -> list[_Waiting]:
        """The next pass: texts from the queue's head that ask for the same output, as many as fit."""
        batch: list[_Waiting] = []
        room = self._settings.max_batch_tokens
        while self._queue:
            item = self._queue[0]
            if item.future.done():  # its client has left, or it waited too long
                self.waiting_tokens -= len(self._queue.popleft().ids)
                continue
            if batch and (len(item.ids) > room or item.output != batch[0].output):
                break
            batch.append(self._queue.popleft())
            room -= len(item.ids)
            self.waiting_tokens -= len(item.ids)
        if not self._queue:
            self._arrived.clear()
        return batch

    def _pass(self, batch: list[_Waiting]) -> np.ndarray:
        now, tokens = time.perf_counter(), sum(len(item.ids) for item in batch)
        rows = self._forward([item.ids for item in batch], [item.types for item in batch], batch[0].output)
        for item in batch:
            self._waited.observe(now - item.since)
        self._size.observe(len(batch))
        self._tokens.observe(tokens)
        self._read.inc(tokens)
        return rows
