"""Measure what a plain conversion costs in accuracy: f32 against int8 and magnitude-pruned artifacts on labelled data.

    python bench/accuracy.py --out bench/results/accuracy-minilm.json \
        sst2=path/to/checkpoint,path/to/dev.tsv mrpc=path/to/checkpoint,path/to/dev.tsv

Every artifact is built here from the checkpoint, then loaded and evaluated by the runtime itself.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from approxrt.benchmark import report
from approxrt.cli.evaluate import evaluate
from approxrt.conversion import convert

SCHEMA = "approxrt.accuracy/1"
# (name, arguments of convert); the first is what the others are compared with
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("f32", {"bits": 32}),
    ("int8", {}),
    ("int4", {"bits": 4}),
    ("int8, density 0.5", {"density": 0.5}),
    ("int8, density 0.25", {"density": 0.25}),
)


def rows_of(task: str, checkpoint: Path, data: Path) -> list[dict[str, Any]]:
    """One row a variant: metrics, their differences to f32, flip rate and size."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "0"
        for i, (name, options) in enumerate(VARIANTS):
            artifact = convert(checkpoint, Path(folder) / str(i), **options)
            result = evaluate(artifact, task, data, truth)
            size = sum(file.stat().st_size for file in artifact.iterdir())
            row = {"task": task, "variant": name, "examples": result["examples"], "metrics": result["metrics"]}
            row["flip_rate"] = result.get("flip_rate")
            row["megabytes"] = round(size / 1e6, 1)
            rows.append(row)
            print(f"{task:6} {name:20} {row['metrics']}  flip rate {row['flip_rate']}", file=sys.stderr)
    return rows


def main() -> None:
    """Evaluate every pair given and write one document."""
    parser = argparse.ArgumentParser(description="accuracy of plain conversions")
    parser.add_argument("pairs", nargs="+", help="TASK=CHECKPOINT,DATA")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for pair in options.pairs:
        task, _, rest = pair.partition("=")
        checkpoint, _, data = rest.partition(",")
        rows += rows_of(task, Path(checkpoint), Path(data))
    document = {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["python", "bench/accuracy.py", *sys.argv[1:]]),
        "commit": report.git_commit(),
        "machine": report.machine(),
        "versions": report.versions(),
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
