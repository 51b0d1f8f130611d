"""Compares values of the engine's tuning sizes (csrc/engine/encoder/plan.h) in turns: bench/results/tuning-NAME.json.

    python bench/bench_tuning.py ARTIFACT... --name minilm
    python bench/bench_tuning.py ARTIFACT... --only few_tokens

What is compared: `few_tokens` as never (0) and always, over short texts: the default lies where always stops winning;
the others over batches, each value against the default.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.reader import read_artifact
from approxrt.benchmark.report import git_commit, machine, versions
from approxrt.runtime.cpu.engine import CpuEngine

ALWAYS = 1 << 20
# name: (values, the first is the base of the ratios; workloads as batch x tokens)
SWEEPS: dict[str, tuple[list[int], list[tuple[int, int]]]] = {
    "few_tokens": ([0, ALWAYS], [(1, n) for n in (1, 4, 8, 16, 24, 32, 48, 64)]),
    "group_tokens": ([96, 24, 48, 192, 384], [(32, 16), (32, 32), (16, 128)]),
    "block_tokens": ([48, 24, 96, 192], [(32, 16), (16, 128), (4, 384)]),
    "team_block_tokens": ([96, 24, 48, 192], [(1, 128), (1, 384)]),
}


def compare(engines: dict[int, CpuEngine], ids: list[list[int]], seconds: float) -> dict[int, list[float]]:
    """Milliseconds of each engine's passes, in turns of several passes."""
    times: dict[int, list[float]] = {value: [] for value in engines}
    for engine in engines.values():
        engine.forward(ids, None, "pooled")
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        for value, engine in engines.items():
            engine.forward(ids, None, "pooled")
            end = time.perf_counter() + 0.02
            while True:
                begin = time.perf_counter()
                engine.forward(ids, None, "pooled")
                times[value].append((time.perf_counter() - begin) * 1e3)
                if time.perf_counter() > end:
                    break
    return times


def sweep(path: Path, only: str | None, threads: int, seconds: float) -> list[dict[str, Any]]:
    """One row a (size, workload, value)."""
    artifact = read_artifact(path)
    rng = np.random.default_rng(0)
    rows = []
    for size, (values, workloads) in SWEEPS.items():
        if only not in (None, size):
            continue
        engines = {value: CpuEngine(artifact, threads, {size: value}) for value in values}
        for batch, tokens in workloads:
            ids = rng.integers(1, artifact.spec.vocab_size, (batch, tokens)).tolist()
            times = compare(engines, ids, seconds)
            base = statistics.median(times[values[0]])
            for value in values:
                p20, median, p80 = np.percentile(times[value], [20, 50, 80])
                row = {"artifact": path.name, "size": size, "value": value, "workload": f"{batch} x {tokens}"}
                row |= {"median_ms": median, "p20_ms": p20, "p80_ms": p80, "faster_than_first": base / median}
                rows.append(row)
                print(f"{path.name:24} {size:18} {value:8} {row['workload']:>9} {median:8.2f} ms {base / median:5.2f}x")
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--only", choices=sorted(SWEEPS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="a workload")
    parser.add_argument("--name", help="write bench/results/tuning-NAME.json")
    args = parser.parse_args()
    rows = [row for path in args.artifacts for row in sweep(path, args.only, args.threads, args.seconds)]
    if args.name:
        about = {"schema": "approxrt.tuning/1", "commit": git_commit(), "machine": machine(), "versions": versions()}
        command = " ".join(["python bench/bench_tuning.py", *map(str, args.artifacts), "--name", args.name])
        doc = {**about, "command": command, "threads": args.threads, "rows": rows}
        out = Path(__file__).resolve().parent / "results" / f"tuning-{args.name}.json"
        out.write_text(json.dumps(doc, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
