"""Which thread a pass runs in: short ones on the event loop, others in their own, small ones also beside large."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="the server needs the extra 'serve'")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

from approxrt.serving.batcher import Batcher
from approxrt.serving.metrics import Metrics
from approxrt.serving.settings import Settings


class Engine:
    """Notes the thread of every pass; texts of tokens 9 take a while."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []

    def __call__(self, ids: Any, types: Any, output: str) -> np.ndarray:
        self.threads.append(threading.current_thread())
        time.sleep(0.01 * sum(row.count(9) for row in ids))
        return np.array([[row[0]] for row in ids], np.float32)


def test_short_passes_run_on_the_event_loop() -> None:
    async def run() -> list[bool]:
        engine = Engine()
        batcher = Batcher("m", engine, Settings(), Metrics())

        async def ask(*tokens: int) -> None:
            found = await batcher.submit([list(tokens)], [[0] * len(tokens)], "logits")
            assert found.tolist() == [[float(tokens[0])]]

        await ask(1, 2)  # nothing is known yet of how long it takes
        await ask(2, 3)
        await ask(*[1] * 4000)
        await ask(9, 9)  # a surprise, once
        await ask(9, 9)
        await batcher.close()
        return [thread is threading.main_thread() for thread in engine.threads]

    assert asyncio.run(run()) == [False, True, False, True, False]


def test_no_pass_runs_beside_a_call_of_the_model() -> None:
    async def run() -> None:
        engine = Engine()
        batcher = Batcher("m", engine, Settings(), Metrics())
        for _ in range(2):
            await batcher.submit([[1]], [[0]], "logits")
        assert engine.threads.pop() is threading.main_thread()
        ended = []

        def slow() -> np.ndarray:
            time.sleep(0.1)
            ended.append(time.perf_counter())
            return np.zeros((1, 1), np.float32)

        calling = asyncio.create_task(batcher.alone(slow))
        await asyncio.sleep(0.02)
        await batcher.submit([[1]], [[0]], "logits")
        assert ended and engine.threads.pop() is not threading.main_thread()
        await calling
        calling = asyncio.create_task(batcher.alone(slow))
        await asyncio.sleep(0.02)
        calling.cancel()  # the call goes on in its thread all the same
        await asyncio.sleep(0)
        await batcher.submit([[1]], [[0]], "logits")
        assert len(ended) == 2
        await batcher.close()

    asyncio.run(run())


def test_small_requests_do_not_wait_for_a_long_text() -> None:
    """Passes of 0.25 s one after the other: a small request is answered within each, and large ones go on."""

    async def run() -> tuple[list[float], Engine]:
        engine = Engine()
        batcher = Batcher("m", engine, Settings(), Metrics())
        flood = asyncio.create_task(batcher.submit([[9] * 25 + [0] * 200] * 4, [[0] * 225] * 4, "logits"))
        await asyncio.sleep(0.05)
        waits = []
        for i in range(6):
            begin = time.perf_counter()
            found = await asyncio.gather(*(batcher.submit([[i, j]], [[0, 0]], "logits") for j in range(3)))
            waits.append(time.perf_counter() - begin)
            assert [row.tolist() for row in found] == [[[float(i)]]] * 3
            await asyncio.sleep(0.1)
        assert (await flood).tolist() == [[9.0]] * 4
        await batcher.close()
        return waits, engine

    waits, engine = asyncio.run(run())
    assert sorted(waits)[4] < 0.1  # all but one, on a machine that is busy
    assert threading.main_thread() not in engine.threads


def test_small_requests_that_left_beside_a_long_text() -> None:
    async def run() -> None:
        batcher = Batcher("m", Engine(), Settings(), Metrics())
        flood = asyncio.create_task(batcher.submit([[9] * 20 + [0] * 200], [[0] * 220], "logits"))
        await asyncio.sleep(0.05)
        gone = [asyncio.create_task(batcher.submit([[1]], [[0]], "logits")) for _ in range(3)]
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        assert (await batcher.submit([[2]], [[0]], "logits")).tolist() == [[2.0]]
        assert not flood.done()
        await flood
        await batcher.close()

    asyncio.run(run())
