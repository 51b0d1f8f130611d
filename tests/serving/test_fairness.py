"""Clients take turns, large requests go slice by slice, and no text is lost or answered twice."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import numpy as np
import pytest

pytest.importorskip("prometheus_client", reason="the server needs the extra 'serve'")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

from approxrt.serving import batcher as batching
from approxrt.serving.batcher import Batcher
from approxrt.serving.errors import Overloaded, TooLarge
from approxrt.serving.fairness import CLIENT, FairQueue, Turns, WaitingText
from approxrt.serving.metrics import Metrics
from approxrt.serving.settings import Settings


class Future:
    """What the queue asks of one."""

    def __init__(self) -> None:
        self.gone = False

    def done(self) -> bool:
        return self.gone


def texts(*lengths: int, output: str = "logits", mark: int = 0) -> list[WaitingText]:
    return [WaitingText([mark] * n, [0] * n, output, Future()) for n in lengths]  # type: ignore[arg-type]


def marks(batch: list[WaitingText]) -> list[int]:
    return [text.ids[0] for text in batch]


def test_clients_take_turns() -> None:
    turns = Turns[str]()
    for client, thing in (("a", "a1"), ("a", "a2"), ("b", "b1"), ("a", "a3"), ("c", "c1")):
        turns.add(client, thing)
    assert len(turns) == 5 and turns.first() == "a1"
    assert [turns.pop() for _ in range(5)] == ["a1", "b1", "c1", "a2", "a3"] and not turns


def test_a_large_request_goes_by_slices_between_small_ones() -> None:
    queue = FairQueue(slice_tokens=100)
    queue.add("flood", texts(*[40] * 10, mark=1))
    assert marks(queue.take(1000)) == [1, 1]  # a slice: 80 tokens, a third would be over it
    queue.add("other", texts(10, mark=2))
    queue.add("third", texts(20, mark=3))
    assert marks(queue.take(1000)) == [2, 3]  # the small ones, whoever came first
    assert marks(queue.take(1000)) == [1, 1]
    assert queue.tokens == 6 * 40 and len(queue) == 6


def test_slices_and_small_ones_alternate() -> None:
    """A stream of small requests does not hold a large one up for ever."""
    queue = FairQueue(slice_tokens=100)
    queue.add("flood", texts(*[60] * 5, mark=1))
    seen = []
    for _ in range(8):
        queue.add("small", texts(10, mark=2))
        seen.append(marks(queue.take(1000)))
    assert seen.count([1]) >= 3 and [2] in [batch[-1:] for batch in seen]


def test_large_requests_share() -> None:
    queue = FairQueue(slice_tokens=100)
    queue.add("a", texts(*[90] * 4, mark=1))
    queue.add("b", texts(*[90] * 4, mark=2))
    assert [marks(queue.take(1000)) for _ in range(4)] == [[1], [2], [1], [2]]


def test_what_has_left_is_not_run() -> None:
    queue = FairQueue(slice_tokens=50)
    waiting = texts(20, 20, 20, 20, mark=1)
    queue.add("a", waiting)
    for text in waiting[:3]:
        text.future.gone = True  # type: ignore[attr-defined]
    assert queue.take(1000) == [waiting[3]] and not queue and len(queue) == queue.tokens == 0
    queue.add("a", gone := texts(60, 60))
    for text in gone:
        text.future.gone = True  # type: ignore[attr-defined]
    assert queue.take(1000) == [] and not queue


def test_thousands_that_have_left_are_passed_over() -> None:
    """A flood of large requests whose clients hang up, with one that stayed behind them."""
    queue = FairQueue(slice_tokens=10)
    for _ in range(5000):
        queue.add("flood", left := texts(20))
        left[0].future.gone = True  # type: ignore[attr-defined]
    queue.add("other", stayed := texts(20, mark=1))
    assert queue.take(1000) == stayed
    assert queue.take(1000) == []
    assert len(queue) == queue.tokens == 0


def test_one_output_a_pass() -> None:
    queue = FairQueue(slice_tokens=100)
    queue.add("a", texts(10, output="logits", mark=1))
    queue.add("b", texts(10, output="pooled", mark=2))
    queue.add("c", texts(10, output="logits", mark=3))
    assert [marks(queue.take(1000)) for _ in range(3)] == [[1], [2], [3]]


@pytest.mark.parametrize("seed", range(20))
def test_every_text_comes_once_and_in_its_order(seed: int) -> None:
    draw = random.Random(seed)
    queue, sent, got = FairQueue(draw.choice((1, 30, 200))), dict[int, list[int]](), dict[int, list[int]]()
    for step in range(200):
        if draw.random() < 0.5:
            lengths = [draw.randint(1, 80) for _ in range(draw.randint(1, 12))]
            some = [WaitingText([step, i] * n, [0], "logits", Future()) for i, n in enumerate(lengths)]  # type: ignore[arg-type]
            queue.add(draw.choice("abc"), some)
            sent[step] = list(range(len(lengths)))
        else:
            for text in queue.take(draw.choice((1, 50, 500))):
                got.setdefault(text.ids[0], []).append(text.ids[1])
    while queue:
        for text in queue.take(100):
            got.setdefault(text.ids[0], []).append(text.ids[1])
    assert got == sent and len(queue) == queue.tokens == 0 and not list(queue)


def test_a_client_with_a_free_share_is_let_in() -> None:
    queue = FairQueue(slice_tokens=10)
    queue.add("flood", texts(*[1] * 100))
    assert not queue.has_room("flood", 1, 100)
    assert queue.has_room("other", 50, 100) and not queue.has_room("other", 51, 100)
    assert FairQueue(10).has_room("alone", 500, 100)  # a request larger than the queue, while it is empty


# -- with an engine ----------------------------------------------------------------------


class Paced:
    """An engine of so many seconds a token, which remembers its passes."""

    def __init__(self, pace: float) -> None:
        self.pace = pace
        self.passes: list[int] = []

    def __call__(self, ids: Any, types: Any, output: str) -> np.ndarray:
        self.passes.append(sum(map(len, ids)))
        time.sleep(self.pace * self.passes[-1])
        return np.array([[row[0]] for row in ids], np.float32)


def test_a_small_request_waits_for_a_slice_and_not_for_the_flood() -> None:
    """1,024 texts of 64 tokens are two seconds of this engine; a text beside them is answered in a fiftieth of that."""

    async def run() -> tuple[list[float], float, Paced]:
        engine = Paced(3e-5)
        batcher = Batcher("m", engine, Settings(), Metrics())
        await batcher.submit([[1] * 200], [[0] * 200], "logits")  # it learns the engine's pace
        begin = time.perf_counter()

        async def flood() -> np.ndarray:
            CLIENT.set("flood")
            return await batcher.submit([[i] + [0] * 63 for i in range(1024)], [[0] * 64] * 1024, "logits")

        flooding = asyncio.create_task(flood())
        waits = []
        for i in range(20):
            await asyncio.sleep(0.02)
            asked = time.perf_counter()
            assert (await batcher.submit([[7, i]], [[0, 0]], "logits")).tolist() == [[7.0]]
            waits.append(time.perf_counter() - asked)
        assert not flooding.done()
        assert (await flooding)[:, 0].tolist() == list(range(1024))
        whole = time.perf_counter() - begin
        await batcher.close()
        return waits, whole, engine

    waits, whole, engine = asyncio.run(run())
    assert whole > 1.5  # as long as the flood takes
    assert float(np.median(waits)) < 0.05
    assert max(engine.passes) <= batching.LEAST_PASS


def test_a_request_of_too_many_tokens_is_refused() -> None:
    async def run() -> None:
        batcher = Batcher("m", Paced(0), Settings(max_request_tokens=100, max_queue=3), Metrics())
        with pytest.raises(TooLarge, match="the request has 120 tokens; the limit is 100"):
            await batcher.submit([[1] * 60] * 2, [[0] * 60] * 2, "logits")
        assert (await batcher.submit([[1] * 50] * 2, [[0] * 50] * 2, "logits")).shape == (2, 1)
        await batcher.close()

    asyncio.run(run())


def test_a_full_queue_refuses_who_filled_it() -> None:
    async def run() -> None:
        batcher = Batcher("m", Paced(2e-3), Settings(max_queue=8), Metrics())

        async def ask(client: str, count: int) -> Any:
            CLIENT.set(client)
            return await batcher.submit([[3] * 10] * count, [[0] * 10] * count, "logits")

        first = asyncio.create_task(ask("flood", 2))
        await asyncio.sleep(0.01)
        second = asyncio.create_task(ask("flood", 8))
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded, match="8 texts wait for model 'm', the limit is 8"):
            await ask("flood", 1)
        assert (await ask("other", 1)).shape == (1, 1)
        assert len(await first) == 2 and len(await second) == 8
        await batcher.close()

    asyncio.run(run())
