"""Writes the README's results from bench/results/*.json; with --check, says whether they are up to date.

`latency-*.json` are documents of `approxrt bench --out`, one table each; `accuracy-*.json` of bench/accuracy.py.
Other files are ignored here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results: begin (make readme) -->", "<!-- results: end -->"
OURS = "approxrt"


def render(results: Path) -> str:
    """The Markdown between the markers."""
    parts = [
        make(json.loads(path.read_text(encoding="utf-8")))
        for pattern, make in (("latency-*.json", table), ("accuracy-*.json", accuracy_table))
        for path in sorted(results.glob(pattern))
    ]
    return "\n\n".join(parts) if parts else "No measurements are committed yet."


# CPU flags, the one that matters most first, and what to call a CPU that has it.
ISA_NAMES = (
    ("avx512_vnni", "AVX-512 VNNI"),
    ("avx512bw", "AVX-512, no VNNI"),
    ("avx_vnni", "AVX-VNNI, no AVX-512"),
    ("avx2", "AVX2, no AVX-512"),
)


def table(doc: dict[str, Any]) -> str:
    """One document: a row an engine, a column a workload; medians in ms and, for ours, the gain over the best peer."""
    workloads = list(dict.fromkeys(row["workload"] for row in doc["rows"]))
    medians = {(row["engine"], row["workload"]): row["median_ms"] for row in doc["rows"]}
    machine, versions = doc["machine"], doc["versions"]
    peers = [e["name"] for e in doc["engines"] if e["family"] != OURS]
    isa = next((name for flag, name in ISA_NAMES if flag in machine["isa"]), "-")
    named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "onnxruntime", "openvino") if name in versions)
    fixed = all(" x " in workload for workload in workloads)
    what = (
        "Median milliseconds for a batch x tokens, full sequences"
        if fixed
        else "Median milliseconds for all texts of a file, lengths as they come (peers: sorted by length, padded)"
    )
    lines = [
        f"**{Path(doc['checkpoint']).name}** on {machine['cpu']} ({isa}), {doc['threads']} threads. {what}, all "
        f"engines in turns in one run; in brackets: times faster than the best peer. {named}.",
        "",
        "| engine | " + " | ".join(workloads) + " | model MB | first answer s |",
        "|---|" + "---:|" * (len(workloads) + 2),
    ]
    for engine in doc["engines"]:
        cells = []
        for workload in workloads:
            ms = medians.get((engine["name"], workload))
            others = [medians[peer, workload] for peer in peers if (peer, workload) in medians]
            ratio = f" ({min(others) / ms:.2f}x)" if ms and others and engine["family"] == OURS else ""
            cells.append("-" if ms is None else f"{ms:.1f}{ratio}")
        size, first = engine.get("size_mb"), engine.get("first_answer_s")
        cells += ["-" if size is None else f"{size:.0f}", "-" if first is None else f"{first:.2f}"]
        lines.append(f"| {engine['name']} | " + " | ".join(cells) + " |")
    if doc["left_out"]:
        lines += ["", "Left out: " + "; ".join(f"{name} ({why})" for name, why in doc["left_out"].items())]
    return "\n".join(lines)


def accuracy_table(doc: dict[str, Any]) -> str:
    """One document of bench/accuracy.py: a row a task and variant."""
    lines = [
        "**Accuracy of plain conversions** (no data used, nothing retrained), evaluated by the runtime on the task's "
        "dev set. Flip rate: share of answers that differ from f32's. The sparse rows: magnitude pruning alone.",
        "",
        "| task | artifact | metrics | flip rate | MB |",
        "|---|---|---|---:|---:|",
    ]
    for row in doc["rows"]:
        metrics = ", ".join(f"{name} {100 * value:.2f}" for name, value in row["metrics"].items())
        flips = "-" if row["flip_rate"] is None else f"{100 * row['flip_rate']:.2f} %"
        lines.append(f"| {row['task']} | {row['variant']} | {metrics} | {flips} | {row['megabytes']:.1f} |")
    return "\n".join(lines)


def updated(readme: str, results: Path) -> str:
    """The README's text with its results replaced. ValueError when a marker is missing."""
    head, found_begin, rest = readme.partition(BEGIN)
    _, found_end, tail = rest.partition(END)
    if not found_begin or not found_end:
        raise ValueError(f"README.md must contain the lines {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n{render(results)}\n{END}{tail}"


def main() -> None:
    """Rewrite README.md, or compare with --check."""
    path = ROOT / "README.md"
    old = path.read_text(encoding="utf-8")
    new = updated(old, ROOT / "bench" / "results")
    if "--check" in sys.argv[1:]:
        sys.exit(0 if old == new else "README.md is out of date: make readme")
    path.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
