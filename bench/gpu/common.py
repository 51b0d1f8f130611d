"""Share what the GPU's benchmarks need: rows that are written as they come, and timings side by side.

`--smoke` runs a script without a GPU, under triton's interpreter on tiny sizes: its numbers mean nothing, its code is
the same but for CUDA graphs and the peers that need a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Setting:
    """Where rows go and where the script runs; `smoke` asks for tiny sizes."""

    out: Path
    smoke: bool

    @property
    def device(self) -> str:
        return "cpu" if self.smoke else "cuda"

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.smoke else full


def parse(description: str) -> Setting:
    """The command line. Without a GPU only `--smoke` runs; the interpreter is then on before triton is imported."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="where rows are written, as JSON")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes under triton's interpreter, without a GPU")
    options = parser.parse_args()
    if options.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        import torch

        if not torch.cuda.is_available():
            sys.exit("there is no GPU here: nothing is measured (--smoke tries the code on tiny sizes)")
    return Setting(options.out, options.smoke)


class Rows:
    """A list of rows that is on disk whenever a row was added; a failing measurement is a row, too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.failed = False

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows.append(dict(row))
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.rows))
        os.replace(temporary, self.path)
        print(json.dumps(self.rows[-1]), flush=True)

    def attempt(self, what: str, measure: Callable[[], Mapping[str, Any]]) -> None:
        """Add what `measure` returns, or what it raised."""
        start = time.monotonic()
        try:
            row = {"what": what, **measure()}
        except Exception as error:  # every other row must still be measured
            traceback.print_exc()
            self.failed = True
            row = {"what": what, "error": f"{type(error).__name__}: {error}"[:600]}
        self.add({**row, "took_s": round(time.monotonic() - start, 2)})

    def finish(self) -> None:
        """Exit with 1 if a row failed."""
        sys.exit(1 if self.failed else 0)


def quantiles(samples: list[float]) -> dict[str, float]:
    """Of milliseconds."""
    p20, median, p80 = np.percentile(samples, [20, 50, 80])
    return {"ms": round(float(median), 5), "p20": round(float(p20), 5), "p80": round(float(p80), 5)}


@dataclass
class Made:
    """Calls that can be timed, and why others cannot."""

    made: dict[str, Callable[[], object]]
    errors: dict[str, str]


def guarded(calls: Mapping[str, Callable[[], Callable[[], object]]]) -> Made:
    """Make and try each call; one that fails is named in `errors` and left out: a peer must not take others along."""
    found = Made({}, {})
    for name, make in calls.items():
        try:
            call = make()
            call()
            found.made[name] = call
        except Exception as error:
            traceback.print_exc()
            found.errors[name] = f"{type(error).__name__}: {error}"[:400]
    return found


def host_times(
    calls: Mapping[str, Callable[[], object]], seconds: float = 3.0, least: int = 10, warm: int = 3
) -> dict[str, Any]:
    """Wall-clock milliseconds of each call, host to host, interleaved: {name: {ms, p20, p80}}.

    A call must return once its results are in host memory. Every one runs `warm` times first, which compiles kernels
    and captures graphs.
    """
    for call in calls.values():
        for _ in range(warm):
            call()
    samples: dict[str, list[float]] = {name: [] for name in calls}
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or min(map(len, samples.values())) < least:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            samples[name].append(1e3 * (time.perf_counter() - start))
    return {name: quantiles(values) for name, values in samples.items()}


def device_times(
    setting: Setting, calls: Mapping[str, Callable[[], object]], rounds: int = 15, repeat: int = 20
) -> dict[str, Any]:
    """Milliseconds of each call on the device, from CUDA graphs of `repeat` calls, interleaved.

    The graph leaves launching out: kernels of microseconds are compared, not Python.
    """
    if setting.smoke:
        return host_times(calls, 0.0, 1)
    import torch

    graphs = {}
    for name, call in calls.items():
        call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(repeat):
                call()
        graphs[name] = graph
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 2):
        for name, graph in graphs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            if turn >= 2:
                samples[name].append(start.elapsed_time(end) / repeat)
    return {name: quantiles(values) for name, values in samples.items()}


def ratios(times: Mapping[str, Mapping[str, float]], ours: str) -> dict[str, float]:
    """How many times as long as `ours` each of the others takes."""
    return {name: round(t["ms"] / times[ours]["ms"], 3) for name, t in times.items() if name != ours}
