"""Import, load and first answer in a fresh process, and the memory it leaves: approxrt beside ONNX Runtime's int8.

    python bench/bench_cold_start.py build/bench/int8 --checkpoint checkpoint/ --out bench/results/cold-start.json

Every round starts one process for each contestant, in turns, on one text. ONNX Runtime gets its own two files: the int8
model that `approxrt bench` builds, and the checkpoint's tokenizer.json, read by the same library that approxrt uses.
"process" is the bare interpreter: what nobody can avoid. `process_s` is from starting the process to its answer,
`answer_s` the same from the program's first statement. Files are in the page cache and Python's bytecode is compiled,
as after any first run (the first round of each is not counted).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.benchmark import report

SCHEMA = "approxrt.cold_start/1"
ROOT = Path(__file__).resolve().parents[1]
CHILD = Path(__file__).resolve().parent / "cold_start_child.py"
TEXT = "A warm, patient film about two brothers who stop talking."


@dataclass(frozen=True)
class Contestant:
    """Hold what one kind of process runs; `size_mb` is all that it deploys."""

    name: str
    engine: str
    folder: Path

    @property
    def size_mb(self) -> float:
        return sum(file.stat().st_size for file in self.folder.iterdir()) / 1e6 if self.engine != "nothing" else 0.0


def onnxruntime_folder(checkpoint: Path, work: Path) -> Path:
    """model.onnx (int8) and tokenizer.json, made as the benchmark's peer is."""
    from approxrt.peers import onnxruntime_engine
    from approxrt.peers.source import Source

    folder = work / "onnxruntime"
    folder.mkdir()
    shutil.copy(onnxruntime_engine.prepare("int8", Source(checkpoint), work), folder / "model.onnx")
    shutil.copy(checkpoint / "tokenizer.json", folder)
    return folder


def start(contestant: Contestant, threads: int, environment: dict[str, str]) -> dict[str, Any]:
    """One process: what it says of itself, and process_s as seen from outside."""
    command = [sys.executable, str(CHILD), contestant.engine, str(contestant.folder), str(threads), TEXT]
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
    if process.returncode or not line:
        sys.exit(f"{contestant.name}: the process failed with exit code {process.returncode}")
    return {"process_s": seconds, **json.loads(line)}


def environment(cache: Path) -> dict[str, str]:
    """This process's, but children keep their bytecode, in a folder of their own, and find this checkout."""
    out = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    out["PYTHONPYCACHEPREFIX"] = str(cache)
    out["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return out


def measure(contestants: list[Contestant], threads: int, rounds: int, cache: Path) -> list[dict[str, Any]]:
    """One row a contestant; times in seconds, memory in MB (10^6 bytes)."""
    env = environment(cache)
    for contestant in contestants:
        start(contestant, threads, env)
    runs: dict[str, list[dict[str, Any]]] = {contestant.name: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant in contestants:
            runs[contestant.name].append(start(contestant, threads, env))
    return [row(contestant, runs[contestant.name]) for contestant in contestants]


def row(contestant: Contestant, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Quantiles over the processes of one contestant."""
    out: dict[str, Any] = {"name": contestant.name, "size_mb": contestant.size_mb, "processes": len(runs)}
    for key, inside in (("process_s", "process_s"), ("answer_s", "seconds")):
        p20, median, p80 = (float(v) for v in np.percentile([run[inside] for run in runs], (20, 50, 80)))
        out |= {key: median, f"{key}_p20": p20, f"{key}_p80": p80}
    for key in ("resident_mb", "peak_mb"):
        out[key] = float(np.median([run[key] for run in runs]))
    out["resident_above_size_mb"] = out["resident_mb"] - contestant.size_mb
    return out | {"answer": runs[-1]["answer"]}


def document(rows: list[dict[str, Any]], threads: int, **extra: Any) -> dict[str, Any]:
    """Return what is written: the run's circumstances, then the rows."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "bench/bench_cold_start.py", *sys.argv[1:]]),
        "commit": report.git_commit(),
        "machine": report.machine(),
        "versions": report.versions(),
        "threads": threads,
        **extra,
        "rows": rows,
    }


def main() -> None:
    """Measure and print; write the document with --out."""
    from approxrt.runtime.threads import resolve_threads

    parser = argparse.ArgumentParser(description="fresh processes: import, load, first answer")
    parser.add_argument("artifacts", type=Path, nargs="+", help="artifact folders")
    parser.add_argument("--checkpoint", type=Path, help="what ONNX Runtime's int8 is made from; without it, no peer")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="write the JSON document here")
    options = parser.parse_args()
    threads = resolve_threads(options.threads)
    with tempfile.TemporaryDirectory(prefix="approxrt-cold-") as name:
        work = Path(name)
        contestants = [Contestant("process", "nothing", work)]
        contestants += [Contestant(f"approxrt:{path.name}", "approxrt", path.resolve()) for path in options.artifacts]
        if options.checkpoint is not None:
            folder = onnxruntime_folder(options.checkpoint, work)
            contestants.append(Contestant("onnxruntime-int8", "onnxruntime", folder))
        rows = measure(contestants, threads, options.rounds, work / "bytecode")
    for line in rows:
        print(
            f"{line['name']:32s} process {line['process_s']:.3f} s ({line['process_s_p20']:.3f} to "
            f"{line['process_s_p80']:.3f}), answer {line['answer_s']:.3f} s, resident {line['resident_mb']:.1f} MB "
            f"(files + {line['resident_above_size_mb']:.1f}), peak {line['peak_mb']:.1f} MB"
        )
    if options.out is not None:
        doc = document(rows, threads, checkpoint=str(options.checkpoint or ""), text=TEXT)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(doc, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
