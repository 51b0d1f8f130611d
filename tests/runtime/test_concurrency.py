"""Several Python threads on one model: right answers, a fair share for each, and forks in the middle of it."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from families import build_tokenizer
from paths import ROOT
from specs import TOKENIZER_JSON, random_tensors, small_spec

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import write_artifact
from approxrt.runtime.cpu.engine import CpuEngine

CALLERS = 6  # more than any of the pools below lets in at once


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda n: f"{n}-threads")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> CpuEngine:
    spec = small_spec("bsr_s8", hidden=128, max_positions=64, max_length=64)
    folder = tmp_path_factory.mktemp("concurrency") / "a"
    artifact = read_artifact(write_artifact(folder, spec, random_tensors(spec), TOKENIZER_JSON, {}))
    return CpuEngine(artifact, threads=request.param)


def batches(count: int) -> list[list[list[int]]]:
    rng = np.random.default_rng(3)
    return [[rng.integers(0, 30, n).tolist() for n in rng.integers(1, 65, 3)] for _ in range(count)]


@contextmanager
def running(calls: list[Callable[[], None]]) -> Iterator[list[int]]:
    """Each call in a loop in a thread of its own while the body runs; yields how often each has returned."""
    done = [0] * len(calls)
    stop = threading.Event()

    def loop(i: int) -> None:
        while not stop.is_set():
            calls[i]()
            done[i] += 1

    callers = [threading.Thread(target=loop, args=(i,), daemon=True) for i in range(len(calls))]
    for caller in callers:
        caller.start()
    try:
        yield done
    finally:
        stop.set()
        for caller in callers:
            caller.join(60)
    assert not any(caller.is_alive() for caller in callers), "a caller is stuck"


def test_callers_at_once_get_their_own_answers(engine: CpuEngine) -> None:
    asked = batches(CALLERS)
    expected = [engine.forward(batch, None, "logits") for batch in asked]
    wrong: list[int] = []

    def call(i: int) -> None:
        if not np.array_equal(engine.forward(asked[i], None, "logits"), expected[i]):
            wrong.append(i)

    with running([lambda i=i: call(i) for i in range(CALLERS)]) as done:
        time.sleep(0.5)
    assert not wrong
    assert all(done)


def test_no_caller_starves(engine: CpuEngine) -> None:
    """Callers that ask the same get about the same number of answers: a third of the mean is far below the worst
    that was seen, and far above what a caller gets that is passed over."""
    asked = batches(1)[0]
    with running([lambda: engine.forward(asked, None, "logits") for _ in range(CALLERS)]) as done:
        time.sleep(1.5)
        counts = list(done)
    assert sum(counts) >= 10 * CALLERS
    assert min(counts) >= sum(counts) / CALLERS / 3, counts


def test_a_long_call_does_not_keep_short_ones_out(engine: CpuEngine) -> None:
    long, short = batches(1)[0] * 60, [[1, 2, 3]]
    calls = [lambda: engine.forward(long, None, "logits"), lambda: engine.forward(short, None, "logits")]
    with running(calls) as done:
        time.sleep(1.0)
        counts = list(done)
    assert counts[0] >= 1
    assert counts[1] > 2 * counts[0], counts


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_fork_in_the_middle_of_calls(engine: CpuEngine) -> None:
    """The child has none of the callers that were inside or waiting, and answers with threads of its own."""
    asked = batches(1)[0]
    expected = engine.forward(asked, None, "logits")
    with running([lambda: engine.forward(asked, None, "logits") for _ in range(CALLERS)]) as done:
        for _ in range(5):
            before = sum(done)
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # a child that hangs dies instead
                same = all(np.array_equal(engine.forward(asked, None, "logits"), expected) for _ in range(3))
                os._exit(0 if same else 1)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
            deadline = time.monotonic() + 30
            while sum(done) == before and time.monotonic() < deadline:
                time.sleep(0.01)
            assert sum(done) > before, "the parent's callers stopped at the fork"


def test_threads_benchmark(tmp_path: Path) -> None:
    spec = small_spec("bsr_s8", hidden=64, max_positions=32)
    tokenizer = build_tokenizer("bert").to_str().encode()
    spec = dataclasses.replace(spec, vocab_size=build_tokenizer("bert").get_vocab_size())
    path = write_artifact(tmp_path / "model", spec, random_tensors(spec), tokenizer, {})
    out = tmp_path / "threads.json"
    command = [sys.executable, str(ROOT / "bench" / "bench_threads.py"), str(path), "--threads", "1,2"]
    command += ["--workload", "2x8", "--callers", "1,3", "--caller-workload", "1x4", "--seconds", "0.2"]
    env = {"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "PATH": "/usr/bin:/bin"}
    subprocess.run([*command, "--out", str(out)], env=env, check=True, capture_output=True)
    doc = json.loads(out.read_text())
    assert doc["schema"] == "approxrt.threads/1"
    one, two = doc["scaling"]
    assert [(row["threads"], row["workload"]) for row in (one, two)] == [(1, "2 x 8"), (2, "2 x 8")]
    assert one["speedup"] == 1
    assert two["speedup"] == pytest.approx(one["median_ms"] / two["median_ms"])
    alone, three = doc["callers"]
    assert (alone["callers"], three["callers"], three["threads"]) == (1, 3, 2)
    assert len(three["answers"]) == 3
    assert three["fairness"] == pytest.approx(min(three["answers"]) / max(three["answers"]))
    assert three["answers_per_s"] > 0
    assert three["longest_ms"] > 0
