"""One row of the compression table: compress, then measure the artifact beside every peer, and evaluate it on dev.

    python bench/compression_row.py NAME CHECKPOINT --task sst2 --data DIR [options of `approxrt compress`]

Runs `approxrt compress` with the given options, then times all candidates of the run (a run with a large speedup leaves
one of half of it, too) in turns with PyTorch eager, ONNX Runtime float32 and OpenVINO int8 on the task's texts, and
writes bench/results/compression/NAME-CANDIDATE.json. Dev is looked at here, after everything has been decided.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from approxrt.benchmark.report import git_commit, machine, versions

ROOT = Path(__file__).resolve().parent
FOLDER = ROOT / "results" / "compression"
PEERS = ("torch-eager", "onnxruntime-f32", "openvino-int8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("checkpoint")
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, help="where runs live, to be resumed; default: a temporary folder")
    parser.add_argument("--peers", default=",".join(PEERS))
    known, rest = parser.parse_known_args()
    work = known.work or Path(tempfile.mkdtemp(prefix="approxrt-compression-"))
    out = work / known.name
    command = ["approxrt", "compress", known.checkpoint, "--task", known.task, "--data", str(known.data), *rest]
    run = [sys.executable, "-m", "approxrt.cli.main", *command[1:], "--out", str(out), "--keep-work", "--json"]
    began = time.monotonic()
    done = subprocess.run([*run, "--overwrite"], stdout=subprocess.PIPE, text=True, check=False)
    report = json.loads(done.stdout)
    if "error" in report:
        sys.exit(report["error"]["message"])
    seconds = time.monotonic() - began
    shown = [Path(part).name if "/" in part else part for part in command]
    for index, candidate in enumerate(sorted(out.with_name(out.name + ".work").glob("candidate-*.json"))):
        artifact = out.with_name(out.name + ".work") / f"candidate-{index}"
        row = {
            "name": known.name,
            "candidate": index,
            "command": " ".join(shown),
            "exit": done.returncode,
            "seconds": round(seconds),
            "options": report["options"],
            "validation": {"before": report["dense"]["metrics"], **json.loads(candidate.read_text())},
            "dev": on_dev(Path(known.checkpoint), artifact, known.task, known.data),
            "times": timed(Path(known.checkpoint), artifact, known, report),
            "commit": git_commit(),
            "machine": machine(),
            "versions": versions(),
        }
        FOLDER.mkdir(parents=True, exist_ok=True)
        target = FOLDER / f"{known.name}-{index}.json"
        row["validation"].pop("path", None)
        target.write_text(json.dumps(row, indent=1) + "\n")
        print(summary(row))
    if known.work is None:
        shutil.rmtree(work)


def on_dev(checkpoint: Path, artifact: Path, task: str, data: Path) -> dict[str, Any]:
    """Metrics of dense and compressed on dev, and the flip rate."""
    import approxrt
    from approxrt.approx.student import Student, predict
    from approxrt.compression.data import encode
    from approxrt.models.checkpoint import load_checkpoint
    from approxrt.tasks.metrics import compute_metrics, flip_rate
    from approxrt.tasks.readers import find_split, read_task

    dense = load_checkpoint(checkpoint)
    names = None if dense.spec.task_type == "regression" else dense.spec.labels
    file = find_split(data, "dev")
    assert file is not None, "the table needs a dev file"
    dev = read_task(task, file, names, names is None)
    encoded = encode(dev, dense.tokenizer_json, 128)
    before = predict(Student(dense.spec, dense.tensors), encoded.ids, encoded.types)
    after = approxrt.load(artifact).logits(dev.texts)
    out = {
        "examples": len(dev),
        "before": compute_metrics(task, before, dev.labels),
        "after": compute_metrics(task, after, dev.labels),
    }
    return out if names is None else out | {"flip_rate": flip_rate(before, after)}


def timed(checkpoint: Path, artifact: Path, known: argparse.Namespace, report: dict[str, Any]) -> dict[str, Any]:
    """All engines in turns on 128 texts of the task's lengths."""
    import approxrt
    from approxrt.analysis.workload import peer_runs, sample_texts, take_turns
    from approxrt.compression.data import encode
    from approxrt.models.checkpoint import load_checkpoint
    from approxrt.tasks.readers import read_task, require_split

    dense = load_checkpoint(checkpoint)
    names = None if dense.spec.task_type == "regression" else dense.spec.labels
    train = read_task(known.task, require_split(known.data, "train"), names, names is None)
    rows = sample_texts([[i] for i in range(len(train))], 128, 1)
    sample = train.subset([row[0] for row in rows])
    texts = encode(sample, dense.tokenizer_json, 128).ids
    model = approxrt.load(artifact)
    ours = encode(sample, (artifact / "tokenizer.json").read_bytes(), 128).ids
    runs = peer_runs(checkpoint, texts, report["options"]["threads"], print, tuple(known.peers.split(",")))
    runs["artifact"] = lambda: model.forward(ours)
    return take_turns(runs, seconds=12)


def summary(row: dict[str, Any]) -> str:
    times, ours = row["times"], row["times"]["artifact"]["median_ms"]
    ratios = ", ".join(f"{n} {t['median_ms'] / ours:.1f}x" for n, t in times.items() if n != "artifact")
    dev = row["dev"]
    metric = next(iter(dev["before"]))
    return (
        f"{row['name']}-{row['candidate']}: {metric} {100 * dev['before'][metric]:.2f} -> "
        f"{100 * dev['after'][metric]:.2f}, flips {100 * dev.get('flip_rate', 0):.1f} %, "
        f"{row['validation']['bytes'] / 1e6:.2f} MB ({row['validation']['shrink']:.1f}x); faster than: {ratios}"
    )


if __name__ == "__main__":
    main()
