"""Turns the JSON of a microbenchmark run into bench/results/kernels-NAME.json, one row a benchmark.

    python -m pytest -q bench/bench_*.py --benchmark-only --benchmark-json=build/microbench.json
    python bench/kernel_report.py build/microbench.json --name my-machine

`make microbench` does both. Rates are in the row's `rate_unit`; `dense_equivalent`, `peak` and `peak_of_session` are
in GMAC/s, `gelements` in 10^9 elements a second.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.benchmark import report

SCHEMA = "approxrt.kernels/1"
RESULTS = Path(__file__).resolve().parent / "results"


def context(command: list[str]) -> dict[str, Any]:
    """When, by which command, of which commit and on what the numbers were measured."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(command),
        "commit": report.git_commit(),
        "machine": report.machine(),
        "versions": report.versions(),
    }


def document(run: dict[str, Any]) -> dict[str, Any]:
    """The published document of pytest-benchmark's JSON."""
    return {"schema": SCHEMA, **run["approxrt"], "threads": 1, "rows": [row(entry) for entry in run["benchmarks"]]}


def row(entry: dict[str, Any]) -> dict[str, Any]:
    """One benchmark: kernel, isa, shape, times of one call in microseconds, then what the benchmark recorded."""
    stats, extra = entry["stats"], dict(entry["extra_info"])
    kernel = re.sub(r"^test_", "", entry["name"].split("[")[0])
    out = {"kernel": kernel, "isa": extra.pop("isa"), "shape": extra.pop("shape")}
    out["median_us"] = rounded(stats["median"] * 1e6)
    if stats.get("data"):
        p20, p80 = np.percentile(stats["data"], (20, 80))
        out |= {"p20_us": rounded(p20 * 1e6), "p80_us": rounded(p80 * 1e6)}
    out["rounds"] = stats["rounds"]
    return out | {key: rounded(value) if isinstance(value, float) else value for key, value in extra.items()}


def rounded(value: float) -> float:
    """Four significant digits: the machine repeats no more."""
    return float(f"{value:.4g}")


def default_name(machine: dict[str, Any]) -> str:
    """A file name from the CPU's: "Intel(R) Xeon(R) Gold 6248" gives "intel-xeon-gold-6248"."""
    cpu = re.sub(r"\(r\)|\(tm\)|\bcpu\b|@.*", " ", machine["cpu"].lower())
    return re.sub(r"[^a-z0-9]+", "-", cpu).strip("-") or "cpu"


def main() -> None:
    """Read one file, write the other."""
    parser = argparse.ArgumentParser(description="pytest-benchmark's JSON to bench/results/kernels-NAME.json")
    parser.add_argument("run", type=Path, help="what --benchmark-json wrote")
    parser.add_argument("--name", default="", help="NAME of the file (default: from the CPU's name)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the file")
    options = parser.parse_args()
    run = json.loads(options.run.read_text(encoding="utf-8"))
    if "approxrt" not in run:
        sys.exit(f"{options.run} was not written by bench/bench_*.py")
    doc = document(run)
    path = options.out / f"kernels-{options.name or default_name(doc['machine'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    # One line a row, so that two runs can be compared with diff.
    rows = ",\n  ".join(json.dumps(entry) for entry in doc.pop("rows"))
    head = json.dumps(doc, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "rows": [\n  {rows}\n ]\n}}\n', encoding="utf-8")
    print(f"{path}: {len(run['benchmarks'])} rows")


if __name__ == "__main__":
    main()
