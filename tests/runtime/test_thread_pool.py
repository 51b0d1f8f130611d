"""Threads of engines: as many as there are, none where the system gives none, and gone with the last model."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_tokenizer
from random_decoders import InMemory, build, tokens
from specs import random_tensors, small_spec

import approxrt
from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ThreadsWarning
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.cpu.engine import CpuEngine

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in Linux's /proc")

GIB = 1 << 30


def running_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def settles_at(expected: int, seconds: float = 10.0) -> bool:
    """Whether there are no more than `expected` threads soon: one that was joined may be listed for a moment."""
    deadline = time.monotonic() + seconds
    while running_threads() > expected and time.monotonic() < deadline:
        time.sleep(0.01)
    return running_threads() <= expected


class _Encoder:
    def __init__(self) -> None:
        self.spec: ModelSpec = small_spec("s8", hidden=64, max_positions=32)
        self.tensors = random_tensors(self.spec)


def encoder_call(threads: int) -> tuple[Any, Callable[[], np.ndarray]]:
    """An engine, and a call whose tokens are shared out among all its threads."""
    engine = CpuEngine(_Encoder(), threads)
    ids = [np.random.default_rng(n).integers(0, 30, n).tolist() for n in range(1, 17)]
    return engine._encoder, lambda: engine.forward(ids, None, "logits")


def decoder_call(threads: int) -> tuple[Any, Callable[[], np.ndarray]]:
    """A prompt, whose linears are regions of their own, and a step, whose stages are one."""
    model: InMemory = build("wide", "g4")
    engine = DecoderEngine(model, threads)

    def call() -> np.ndarray:
        cache = engine.cache(40)
        return np.concatenate([engine.step([cache], [tokens(20)], True), engine.step([cache], [[7]])])

    return engine._decoder, call


ENGINES = {"encoder": encoder_call, "decoder": decoder_call}


@contextmanager
def stacks_of(size: int) -> Iterator[None]:
    """New threads, Python's as well, ask for stacks of `size` bytes."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "pthread_setattr_default_np"):
        pytest.skip("this libc has no pthread_setattr_default_np, by which threads are refused here")
    before, asked = (ctypes.create_string_buffer(256) for _ in range(2))  # pthread_attr_t has 56 bytes on x86-64
    assert libc.pthread_getattr_default_np(before) == 0
    assert libc.pthread_getattr_default_np(asked) == 0
    assert libc.pthread_attr_setstacksize(asked, ctypes.c_size_t(size)) == 0
    assert libc.pthread_setattr_default_np(asked) == 0
    try:
        yield
    finally:
        assert libc.pthread_setattr_default_np(before) == 0


def no_threads() -> Any:
    """Every new thread is refused, as at a limit of processes, which root does not feel: no stack has 2^47 bytes."""
    return stacks_of(1 << 47)


@contextmanager
def memory_for(more: int) -> Iterator[None]:
    """The address space may grow by `more` bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("kind", ENGINES)
def test_without_a_single_thread_the_caller_does_it_all(kind: str) -> None:
    expected = ENGINES[kind](1)[1]()
    before = running_threads()
    with no_threads():
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threading.Thread(target=print).start()
        engine, call = ENGINES[kind](5)
        with pytest.warns(ThreadsWarning, match=r"threads=5, but the system gave only 1 .*--threads 1"):
            np.testing.assert_array_equal(call(), expected)
        assert engine.missing_threads == 4
        assert running_threads() <= before
    # As soon as there are threads again, and it is asked again, it has them all.
    time.sleep(1.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(call(), expected)
    assert engine.missing_threads == 0
    assert running_threads() == before + 4
    del engine, call
    assert settles_at(before)


@pytest.mark.parametrize("kind", ENGINES)
def test_some_threads_are_used(kind: str) -> None:
    """Stacks of one GiB, and room for one or two of them: what was started stays and works."""
    expected = ENGINES[kind](1)[1]()
    before = running_threads()
    with stacks_of(GIB), memory_for(2 * GIB + GIB // 2):
        engine, call = ENGINES[kind](5)
        with pytest.warns(ThreadsWarning, match=r"threads=5, but the system gave only [23] "):
            np.testing.assert_array_equal(call(), expected)
        there = 5 - engine.missing_threads
        assert running_threads() == before + there - 1
        for _ in range(20):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ThreadsWarning)
                np.testing.assert_array_equal(call(), expected)
    del engine, call
    assert settles_at(before)


def test_engines_of_one_size_share_their_threads() -> None:
    before = running_threads()
    held = [encoder_call(4), encoder_call(4), decoder_call(4)]
    for pair in held:
        pair[1]()
    assert running_threads() == before + 3
    del held[:2], pair
    assert running_threads() == before + 3
    held.clear()
    assert settles_at(before)


def test_five_hundred_loads_leave_no_thread(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("bert")
    spec = small_spec("g8", vocab_size=tokenizer.get_vocab_size())
    path = write_artifact(tmp_path / "a", spec, random_tensors(spec), tokenizer.to_str().encode(), {})
    expected = approxrt.load(path, threads=1).classify(
        ["a film", "a good film"]
    )  # what is started once is started here
    before = running_threads()
    most = 0
    for _ in range(500):
        model = approxrt.load(path, threads=4)
        assert model.classify(["a film", "a good film"]) == expected
        most = max(most, running_threads())
        del model
    # At most: three workers, and of this load and the one before a thread that hashes and one that packs.
    assert most <= before + 3 + 4
    assert settles_at(before)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_forks_while_models_come_and_go() -> None:
    """A pool may end between a fork's beginning and its end; the child makes its own."""
    expected = encoder_call(3)[1]()
    stop, faults = threading.Event(), []

    def come_and_go() -> None:
        while not stop.is_set():
            if not np.array_equal(encoder_call(3)[1](), expected):
                faults.append("an answer changed")

    callers = [threading.Thread(target=come_and_go, daemon=True) for _ in range(2)]
    for caller in callers:
        caller.start()
    try:
        for _ in range(20):
            child = os.fork()
            if child == 0:
                signal.alarm(30)  # a child that hangs dies instead
                os._exit(0 if np.array_equal(encoder_call(3)[1](), expected) else 1)
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0
    finally:
        stop.set()
        for caller in callers:
            caller.join(60)
    assert not any(caller.is_alive() for caller in callers), "a caller is stuck"
    assert not faults
