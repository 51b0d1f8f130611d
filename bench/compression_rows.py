"""Rows of the compression table: finished runs of `approxrt compress`, timed beside every peer and evaluated on dev.

    approxrt compress CHECKPOINT --task sst2 --data DIR --out RUNS/NAME --keep-work --json ... > RUNS/NAME.json
    python bench/compression_rows.py CHECKPOINT --task sst2 --data DIR RUNS/NAME [RUNS/OTHER ...]

All candidates of all runs (a run with a large speedup leaves one of half of it, too) take turns with PyTorch eager,
ONNX Runtime float32 and OpenVINO int8 on 128 of the task's texts in one process, so that their ratios are of one
moment.
Writes bench/results/compression/NAME-CANDIDATE.json. Dev is looked at here, after everything has been decided.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.formats import embedding_tensors
from approxrt.artifact.tensors import DTYPES
from approxrt.benchmark.report import git_commit, machine, versions
from approxrt.models.checkpoint import Checkpoint, load_checkpoint
from approxrt.significance.workload import peer_runs, sample_texts, take_turns
from approxrt.tasks.examples import encode
from approxrt.tasks.metrics import compute_metrics, flip_rate
from approxrt.tasks.readers import Dataset, find_split, read_task, require_split
from approxrt.torch_models.encoder import TorchEncoder, predict
from approxrt.vocabulary.prune import compact_tokenizer

FOLDER = Path(__file__).resolve().parent / "results" / "compression"
PEERS = ("torch-eager", "onnxruntime-f32", "openvino-int8")
SECONDS = 30.0
MAX_LENGTH = 128
# Options that a row's command names where they are not the default.
NAMED = ("speedup", "shrink", "max_drop", "recipe", "method", "target", "vocabulary", "epochs", "limit", "seed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("runs", type=Path, nargs="+")
    known = parser.parse_args()
    dense = load_checkpoint(known.checkpoint)
    found: dict[str, tuple[Path, int, Path]] = {}
    for run in known.runs:
        work = run.with_name(run.name + ".work")
        for index in range(len(list(work.glob("candidate-*.json")))):
            found[f"{run.name}-{index}"] = (run, index, work / f"candidate-{index}")
    times = timed(known.checkpoint, dense, known.task, known.data, {name: path for name, (_, _, path) in found.items()})
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (run, index, path) in found.items():
        report = json.loads(run.with_name(run.name + ".json").read_text())
        candidate = json.loads(path.with_suffix(".json").read_text())
        candidate.pop("path")
        # Names of checkpoints that taught beside the dense one: the work folder's identity has them.
        teachers = json.loads((path.parent / "identity.json").read_text()).get("teachers", [])
        row = {
            "name": run.name,
            "candidate": index,
            "command": command(known, report, teachers),
            "teachers": teachers,
            "seconds": report["seconds"],
            "options": report["options"],
            "validation": {"before": report["dense"]["metrics"], "seen": report["dense"]["seen"], **candidate},
            "full_vocabulary_bytes": full_vocabulary_bytes(dense, path, candidate["bytes"]),
            "shares_rows": shares_rows(path),
            "dev": on_dev(dense, path, known.task, known.data),
            "times": {key: value for key, value in times.items() if key in PEERS} | {"artifact": times[name]},
            "commit": git_commit(),
            "machine": machine(),
            "versions": versions(),
        }
        (FOLDER / f"{name}.json").write_text(json.dumps(row, indent=1) + "\n")
        print(summary(row), flush=True)


def command(known: argparse.Namespace, report: dict[str, Any], teachers: list[str]) -> str:
    """The command that made the run, with folders by their names."""
    options, plain = report["options"], {"seed": 0, "recipe": "train", "method": "ours", "target": "cpu"}
    parts = ["approxrt compress", known.checkpoint.name, "--task", known.task, "--data", known.data.name]
    parts += ["--objective", ",".join(options["objective"])]
    for name in NAMED:
        value = options[name]
        if value is not None and plain.get(name) != value:
            parts += [f"--{name.replace('_', '-')}", str(value)]
    parts += [part for teacher in teachers for part in ("--teacher", teacher)]
    return " ".join([*parts, "--budget", f"{options['budget']:.0f}s"])


def read(dense: Checkpoint, task: str, path: Path) -> Dataset:
    names = None if dense.spec.task_type == "regression" else dense.spec.labels
    return read_task(task, path, names, names is None)


def on_dev(dense: Checkpoint, artifact: Path, task: str, data: Path) -> dict[str, Any]:
    """Metrics of dense and compressed on dev, and the flip rate."""
    file = find_split(data, "dev")
    assert file is not None, "the table needs a dev file"
    dev = read(dense, task, file)
    encoded = encode(dev, dense.tokenizer_json, MAX_LENGTH)
    before = predict(TorchEncoder(dense.spec, dense.tensors), encoded.ids, encoded.types)
    after = approxrt.load(artifact).logits(dev.texts)
    out = {
        "examples": len(dev),
        "before": compute_metrics(task, before, dev.labels),
        "after": compute_metrics(task, after, dev.labels),
    }
    return out if dense.spec.task_type == "regression" else out | {"flip_rate": flip_rate(before, after)}


def shares_rows(artifact: Path) -> bool:
    """Tokens without a row of the embedding table stand for others (`approxrt.vocabulary.row_sharing`)."""
    vocab: dict[str, int] = json.loads((artifact / "tokenizer.json").read_bytes())["model"]["vocab"]
    return len(vocab) > len(set(vocab.values()))


def full_vocabulary_bytes(dense: Checkpoint, artifact: Path, size: int) -> int:
    """Estimate the artifact's bytes (now `size`) with the words that were pruned: rows as its rarest, and names."""
    spec = read_artifact(artifact).spec
    missing = dense.spec.vocab_size - spec.vocab_size
    if not missing:
        return size

    def table(words: int) -> int:
        shapes = embedding_tensors(spec.embedding_kind, words, spec.embedding_size, spec.wide_words)
        return sum(DTYPES[dtype].itemsize * math.prod(shape) for _, dtype, shape in shapes)

    rows = table(spec.vocab_size + missing) - table(spec.vocab_size)
    names = len(compact_tokenizer(dense.tokenizer_json)) - (artifact / "tokenizer.json").stat().st_size
    return size + rows + names


def timed(checkpoint: Path, dense: Checkpoint, task: str, data: Path, artifacts: dict[str, Path]) -> dict[str, Any]:
    """All engines in turns on texts of the task's lengths; each artifact reads them with its own tokenizer."""
    train = read(dense, task, require_split(data, "train"))
    whole = encode(train, dense.tokenizer_json, MAX_LENGTH)
    texts = sample_texts(whole.ids, 128, 1)
    places = {tuple(ids): i for i, ids in enumerate(whole.ids)}
    sample = train.subset([places[tuple(text)] for text in texts])
    models = {name: approxrt.load(path) for name, path in artifacts.items()}
    threads = next(iter(models.values())).info["threads"]
    runs = peer_runs(checkpoint, texts, threads, print, PEERS)
    for name, model in models.items():
        ours = encode(sample, (artifacts[name] / "tokenizer.json").read_bytes(), MAX_LENGTH).ids
        runs[name] = lambda model=model, ours=ours: model.forward(ours)
    return {name: asdict(timing) for name, timing in take_turns(runs, seconds=SECONDS).items()}


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
