"""Scaling from one thread to all, and several Python threads calling one model at once.

    python bench/bench_threads.py build/bench/int8 build/bench/int8-density-0.25 --out bench/results/threads.json

Scaling: the same artifact loaded with each number of threads, full sequences, all in turns in one run. Callers: Python
threads that ask one model in a loop; `answers` are each one's calls in the same seconds, `fairness` the least of them
over the most, `longest_ms` the longest time that anybody waited for one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import approxrt
from approxrt.benchmark import report
from approxrt.runtime.threads import default_threads

SCHEMA = "approxrt.threads/1"
BLOCK_S = 0.05  # of one model's repetitions before the next one's turn


def sequences(model: approxrt.Model, batch: int, seq: int) -> list[list[int]]:
    """Random ids of full length."""
    rng = np.random.default_rng(0)
    return rng.integers(1, model.spec.vocab_size, (batch, seq)).tolist()


def scaling(
    models: dict[tuple[str, int], approxrt.Model], batch: int, seq: int, seconds: float
) -> list[dict[str, Any]]:
    """One row a model and number of threads: quantiles in ms, and times faster than with the fewest threads."""
    inputs = sequences(next(iter(models.values())), batch, seq)
    times: dict[tuple[str, int], list[float]] = {key: [] for key in models}
    blocks = {}
    for key, model in models.items():
        model.forward(inputs)
        begin = time.perf_counter()
        model.forward(inputs)
        blocks[key] = max(1, int(BLOCK_S / (time.perf_counter() - begin)))
    end, rounds = time.perf_counter() + seconds, 0
    while rounds < 3 or time.perf_counter() < end:
        for key, model in models.items():
            model.forward(inputs)  # untimed: its threads wake up
            for _ in range(blocks[key]):
                begin = time.perf_counter()
                model.forward(inputs)
                times[key].append((time.perf_counter() - begin) * 1e3)
        rounds += 1
    rows = []
    for (name, threads), values in times.items():
        p20, median, p80 = (float(v) for v in np.percentile(values, (20, 50, 80)))
        least = min(other for artifact, other in times if artifact == name)
        row = {"artifact": name, "workload": f"{batch} x {seq}", "threads": threads, "repetitions": len(values)}
        row |= {"median_ms": median, "p20_ms": p20, "p80_ms": p80}
        rows.append(row | {"speedup": float(np.median(times[name, least])) / median})
    return rows


def callers(name: str, model: approxrt.Model, count: int, batch: int, seq: int, seconds: float) -> dict[str, Any]:
    """`count` Python threads in a loop on one model."""
    inputs = sequences(model, batch, seq)
    model.forward(inputs)
    answers, longest = [0] * count, [0.0] * count
    start, stop = threading.Barrier(count + 1), threading.Event()

    def loop(i: int) -> None:
        start.wait()
        while not stop.is_set():
            begin = time.perf_counter()
            model.forward(inputs)
            longest[i] = max(longest[i], time.perf_counter() - begin)
            answers[i] += 1

    threads = [threading.Thread(target=loop, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    start.wait()
    begin = time.perf_counter()
    time.sleep(seconds)
    counted, elapsed = list(answers), time.perf_counter() - begin
    stop.set()
    for thread in threads:
        thread.join()
    return {
        "artifact": name,
        "workload": f"{batch} x {seq}",
        "threads": model.info["threads"],
        "callers": count,
        "answers": counted,
        "answers_per_s": sum(counted) / elapsed,
        "fairness": min(counted) / max(counted) if max(counted) else 0.0,
        "longest_ms": max(longest) * 1e3,
    }


def pairs(text: str) -> list[tuple[int, int]]:
    """The numbers of a list such as 1x16,32x128."""
    parts = [part.split("x") for part in text.split(",")]
    return [(int(batch), int(seq)) for batch, seq in parts]


def main() -> None:
    """Measure and print; write the document with --out."""
    parser = argparse.ArgumentParser(description="scaling over threads, and several callers at once")
    parser.add_argument("artifacts", type=Path, nargs="+", help="artifact folders")
    parser.add_argument("--threads", default=f"1,{default_threads()}", help="numbers of threads to compare")
    parser.add_argument("--workload", type=pairs, default="32x128,1x16,1x128", help="batch x tokens")
    parser.add_argument("--callers", default="1,2,4,8", help="numbers of Python threads")
    parser.add_argument("--caller-workload", type=pairs, default="1x16,8x128", help="what each caller asks")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--out", type=Path, help="write the JSON document here")
    options = parser.parse_args()
    numbers = sorted({int(part) for part in options.threads.split(",")})
    models = {
        (path.name, threads): approxrt.load(path, threads=threads) for path in options.artifacts for threads in numbers
    }
    rows = [row for batch, seq in options.workload for row in scaling(models, batch, seq, options.seconds)]
    for row in rows:
        print(
            f"{row['artifact']:24s} {row['workload']:>9s} {row['threads']} threads: {row['median_ms']:.2f} ms "
            f"({row['p20_ms']:.2f} to {row['p80_ms']:.2f}), {row['speedup']:.2f}x"
        )
    # Callers share the pool of the largest number of threads, as those of a server do.
    asked = [
        callers(path.name, models[path.name, numbers[-1]], int(count), batch, seq, options.seconds)
        for path in options.artifacts
        for batch, seq in options.caller_workload
        for count in options.callers.split(",")
    ]
    for row in asked:
        print(
            f"{row['artifact']:24s} {row['workload']:>9s} {row['callers']} callers: {row['answers_per_s']:.1f} "
            f"answers/s, fairness {row['fairness']:.2f}, longest {row['longest_ms']:.0f} ms"
        )
    if options.out is not None:
        doc = {
            "schema": SCHEMA,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(["python", "bench/bench_threads.py", *sys.argv[1:]]),
            "commit": report.git_commit(),
            "machine": report.machine(),
            "versions": report.versions(),
            "scaling": rows,
            "callers": asked,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(doc, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
