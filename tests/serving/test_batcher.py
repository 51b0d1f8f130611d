"""Which thread a pass runs in: short ones on the event loop, others and those beside a longer call in their own."""

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
