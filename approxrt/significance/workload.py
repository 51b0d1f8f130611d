"""Time what a constraint on speed speaks of: a task's own texts, beside the fastest float32 engine at hand.

Every engine gets the same texts, peers in batches of up to 32: of exactly equal length, so that nothing is padded, or
sorted by length and padded a little, whichever is faster for that engine; ours takes the packed run. They take turns in
one process, since a machine's temper drifts.
"""

from __future__ import annotations

import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.memory import Memory
from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.peers.engines import family_module
from approxrt.peers.source import Source, pad
from approxrt.random import Stream, generator

PEERS = ("torch-eager", "onnxruntime-f32")
PEER_BATCH = 32
SAMPLE_TOKENS = 4096
SETTLE_S = 0.02

Run = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One engine's milliseconds, measured in turns with others."""

    median_ms: float
    p20_ms: float
    p80_ms: float
    rounds: int

    def over(self, count: int) -> Timing:
        """Return the times of one of `count` equal parts."""
        return Timing(self.median_ms / count, self.p20_ms / count, self.p80_ms / count, self.rounds)


def sample_texts(ids: Sequence[Sequence[int]], count: int, seed: int) -> list[list[int]]:
    """Up to `count` texts that have the lengths of the task, of up to `SAMPLE_TOKENS` tokens in all."""
    rows = generator(seed, Stream.WORKLOAD).permutation(len(ids))[:count]
    fitting = np.searchsorted(np.cumsum([len(ids[i]) for i in rows]), SAMPLE_TOKENS)
    return [list(ids[i]) for i in np.sort(rows[: max(1, int(fitting))])]


def equal_length_batches(texts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """i64[b, t] of texts with the same number of tokens, so that nothing is padded."""
    groups: dict[int, list[Sequence[int]]] = {}
    for text in texts:
        groups.setdefault(len(text), []).append(text)
    return [
        np.array(group[i : i + PEER_BATCH], np.int64)
        for _, group in sorted(groups.items())
        for i in range(0, len(group), PEER_BATCH)
    ]


def engine_run(spec: ModelSpec, tensors: Mapping[str, np.ndarray], texts: Sequence[Sequence[int]], threads: int) -> Run:
    """Our engine on all texts in one call."""
    from approxrt.runtime.cpu.engine import CpuEngine

    engine = CpuEngine(Memory(spec, tensors), threads)
    what = "logits" if spec.labels else "pooled"
    return lambda: engine.forward(texts, None, what)


def peer_runs(
    checkpoint: Path,
    texts: Sequence[Sequence[int]],
    threads: int,
    log: Callable[[str], None],
    peers: Sequence[str] = PEERS,
) -> dict[str, Run]:
    """The peers that are installed, ready to run. One that cannot be built is left out and logged."""
    exact, padded = equal_length_batches(texts), sorted_batches(texts)
    runs: dict[str, Run] = {}
    with tempfile.TemporaryDirectory(prefix="approxrt-baseline-") as folder:
        for name in peers:
            family, variant = name.split("-", 1)
            if importlib.util.find_spec(family) is None:
                continue
            try:
                module = family_module(family)
                path = module.prepare(variant, Source(checkpoint), Path(folder))
                engine = module.open_engine(variant, path, threads)
                runs[name] = min((_exact_run(engine, exact), _padded_run(engine, padded)), key=_second_time)
            except Exception as error:
                runs.pop(name, None)
                log(f"{name} is left out of the baseline: {type(error).__name__}: {error}")
    return runs


def sorted_batches(texts: Sequence[Sequence[int]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (ids, mask) i64[b, t] of texts in the order of their lengths."""
    ordered = sorted((list(text) for text in texts), key=len)
    return [pad(ordered[i : i + PEER_BATCH]) for i in range(0, len(ordered), PEER_BATCH)]


def _exact_run(engine: Any, batches: Sequence[np.ndarray]) -> Run:
    return lambda: [engine.run(ids, None) for ids in batches]


def _padded_run(engine: Any, batches: Sequence[tuple[np.ndarray, np.ndarray]]) -> Run:
    return lambda: [engine.run(ids, mask) for ids, mask in batches]


def _second_time(run: Run) -> float:
    """Seconds of a run after a first one, in which engines settle."""
    run()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def take_turns(runs: Mapping[str, Run], seconds: float = 6.0, least_rounds: int = 5) -> dict[str, Timing]:
    """Time each of `runs` in turns, for about `seconds` in all."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < least_rounds or time.perf_counter() < end:
        for name, run in runs.items():
            time.sleep(SETTLE_S)
            run()
            begin = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - begin) * 1e3)
        rounds += 1
        if rounds >= 200:
            break
    out = {}
    for name, values in times.items():
        p20, median, p80 = (float(x) for x in np.percentile(values, (20, 50, 80)))
        out[name] = Timing(median, p20, p80, rounds)
    return out
