"""The README's table of compressions, from bench/results/compression/*.json (bench/compression_rows.py writes them)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
F32_PEERS = ("onnxruntime-f32", "openvino-f32", "torch-eager")


def table(folder: Path) -> str:
    """One line a configuration: mean over its seeds, with the spread where there are several."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not rows:
        return ""
    cpus = sorted({cpu(row) for row in rows})
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        # Times of two machines have no mean.
        machine = (cpu(row),) if len(cpus) > 1 else ()
        groups.setdefault((*key_of(row), *machine), []).append(row)
    seconds = sorted({row["seconds"] for row in rows})
    lines = [
        f"**Compressions** of fine-tuned MiniLM on {' and '.join(cpus)}, from `approxrt compress` "
        f"({seconds[0] / 60:.0f} to {seconds[-1] / 60:.0f} minutes each, sometimes two at once). Dev metrics of the "
        "float32 checkpoint and of the artifact, mean over runs (each fine-tuned and compressed anew; at 20x "
        "compressed anew) and, where there are several, least to largest; nothing was selected on dev. Times: all "
        "engines in turns on 128 of the task's texts, 2 threads, peers without padding or sorted by length, whichever "
        "is faster for them. Best f32 peer: of ONNX Runtime and PyTorch eager. Full vocabulary: how much smaller the "
        "artifact would be with a row for every word of the tokenizer (-: not recorded). Words in pieces: spelled with "
        "smaller ones where they have no row, as before words could share rows. The 4x lines are the "
        "half-way candidates of 8x runs: here they are the dense int8 model, which is that fast. `commit` in each JSON "
        "is that of timing and evaluation; some of the models were trained a few commits before. Differences of one "
        "run under a point are noise.",
        "",
        f"| task | asked for |{' CPU |' if len(cpus) > 1 else ''} runs | metric | float32 | artifact | loss % | "
        "flips % | MB | smaller | full vocabulary | torch eager | best f32 peer | OpenVINO int8 |",
        f"|---|---|{'---|' if len(cpus) > 1 else ''}---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for key in sorted(groups, key=str):
        lines.append(_line(key, groups[key]))
    return "\n".join(lines)


# What a reader may want of a task, as it is asked for, and the machine that has most of it.
HEADLINES = (
    ("sst2", "8x faster"),
    ("sst2", "20x smaller"),
    ("sst2", "25x smaller"),
    ("mrpc", "5x faster, 14x smaller"),
    ("mrpc", "8x faster, 14x smaller"),
    ("stsb", "5x faster, 14x smaller"),
    ("stsb", "8x faster, 14x smaller"),
    ("rte", "accuracy"),
    ("cola", "accuracy"),
)


def glance(folder: Path) -> str:
    """A few lines of `table`, for those who read no more."""
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    lines = [
        "**MiniLM at a glance**: a fine-tuned 91 MB model (22.7 M weights in float32), `approxrt compress`, and what "
        "it costs on the dev files, which nothing was selected on. Best f32 peer: the faster of ONNX Runtime and "
        "PyTorch, no padding computed. Mean over runs.",
        "",
        "| task | asked for | runs | metric before | after | MB | smaller | faster than the best f32 peer | than "
        "OpenVINO int8 |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for headline in HEADLINES:
        machines: dict[str, list[Row]] = {}
        for row in rows:
            if key_of(row) == headline:
                machines.setdefault(cpu(row), []).append(row)
        if machines:
            lines.append(_headline(headline, max(machines.values(), key=len)))
    return "\n".join(lines) if len(lines) > 4 else ""


def _headline(key: Sequence[str], rows: Sequence[Row]) -> str:
    metric = next(iter(rows[0]["dev"]["before"]))
    before, after = (100 * np.mean([row["dev"][when][metric] for row in rows]) for when in ("before", "after"))
    size, smaller = (np.mean([row["validation"][name] for row in rows]) for name in ("bytes", "shrink"))
    cells = [
        *key,
        str(len(rows)),
        f"{metric} {before:.2f}",
        f"{after:.2f} ({100 * (after / before - 1):+.2f} %)",
        f"{size / 1e6:.1f}",
        f"{smaller:.1f}x",
        _ratio(rows, F32_PEERS),
        _ratio(rows, ("openvino-int8",)),
    ]
    return "| " + " | ".join(cells) + " |"


def cpu(row: Row) -> str:
    """The maker's name for it, without marks and clock."""
    name = row["machine"]["cpu"].split("@")[0].replace("(R)", "").replace("Processor", "")
    return " ".join(name.split())


def key_of(row: Row) -> tuple[Any, ...]:
    options, about = row["options"], row["validation"]["about"]
    asked = []
    if "accuracy" in options["objective"]:
        asked.append("accuracy")
    if about.get("speedup"):
        asked.append(f"{about['speedup']:g}x faster")
    if about.get("shrink"):
        words = "" if row.get("shares_rows") else ", words in pieces"
        asked.append(
            f"{about['shrink']:g}x smaller" + (", full vocabulary" if options["vocabulary"] == "full" else words)
        )
    if about.get("method", "ours") != "ours" or options["recipe"] == "one-shot":
        asked.append(f"{options['method']}, no training")
    if row.get("teachers"):
        asked.append(f"{len(row['teachers'])} more teachers")
    label = row["name"].split(".")[0].split("-")[0]
    note = " (from int8-trained)" if "qat" in row["name"] else ""
    return label + note, ", ".join(asked)


def _line(key: tuple[Any, ...], rows: Sequence[Row]) -> str:
    metric = next(iter(rows[0]["dev"]["before"]))
    before = [100 * row["dev"]["before"][metric] for row in rows]
    after = [100 * row["dev"]["after"][metric] for row in rows]
    loss = 100 * (1 - np.mean(after) / np.mean(before))
    flips = [100 * row["dev"]["flip_rate"] for row in rows if "flip_rate" in row["dev"]]
    size, smaller = (np.mean([row["validation"][name] for row in rows]) for name in ("bytes", "shrink"))
    cells = [
        *key,
        str(len(rows)),
        metric,
        _spread(before),
        _spread(after),
        f"{loss:+.2f}".replace("+-", "-"),
        f"{np.mean(flips):.1f}" if flips else "-",
        f"{size / 1e6:.1f}",
        f"{smaller:.1f}x",
        _full(rows),
        _ratio(rows, ("torch-eager",)),
        _ratio(rows, F32_PEERS),
        _ratio(rows, ("openvino-int8",)),
    ]
    return "| " + " | ".join(cells) + " |"


def _spread(values: Sequence[float]) -> str:
    mean = f"{np.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f})"


def _full(rows: Sequence[Row]) -> str:
    """Times smaller with every word of the tokenizer, of the rows that say so."""
    known = [row["validation"] | row for row in rows if "full_vocabulary_bytes" in row]
    if not known:
        return "-"
    return f"{np.mean([row['bytes'] * row['shrink'] / row['full_vocabulary_bytes'] for row in known]):.1f}x"


def _ratio(rows: Sequence[Row], names: Sequence[str]) -> str:
    found = ratio(rows, names)
    return "-" if found is None else f"{found:.1f}x"


def ratio(rows: Sequence[Row], names: Sequence[str], engine: str = "artifact") -> float | None:
    """Times faster than the fastest of `names` that were measured; mean over rows."""
    ratios = []
    for row in rows:
        times = [row["times"][name]["median_ms"] for name in names if name in row["times"]]
        if times:
            ratios.append(min(times) / row["times"][engine]["median_ms"])
    return float(np.mean(ratios)) if ratios else None
