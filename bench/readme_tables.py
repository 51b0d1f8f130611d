"""Writes the tables of README.md and docs/benchmarks.md from bench/results/; with --check, says if they are up to date.

`latency-*.json` are documents of `approxrt bench --out`; `accuracy-*.json` of bench/accuracy.py, `cold-start.json` of
bench/bench_cold_start.py, `threads.json` of bench/bench_threads.py, `sign-attention.json` of
bench/bench_sign_attention.py, `sign-decoding.json` of bench/bench_sign_decoding.py, `generate.json` of
bench/bench_generate.py, `perplexity.json` of the same with whole texts, `serving.json` of bench/bench_serving.py.
Other files are ignored here, but for the profiles of `approxrt bench --profile` in two of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import compression_table  # noqa: E402

BEGIN, END = "<!-- results: begin (make readme) -->", "<!-- results: end -->"
OURS = "approxrt"

# (files of bench/results, what makes a table of one)
Tables = tuple[tuple[str, Callable[[dict[str, Any]], str]], ...]


def render(results: Path) -> str:
    """The README's results: what most readers come for."""
    parts = [compression_table.glance(results / "compression")]
    parts += _tables(results, README_TABLES)
    parts.append(compression_table.table(results / "compression"))
    return _joined(parts)


def render_more(results: Path) -> str:
    """All others, for docs/benchmarks.md."""
    shown = {path for pattern, _ in README_TABLES for path in results.glob(pattern)}
    parts = _tables(results, MORE_TABLES, shown)
    before, after = results / "profile-minilm-before.json", results / "latency-minilm.json"
    if before.exists() and after.exists():
        parts.append(profile_table(_read(before), _read(after), "approxrt:int8-density-0.25", "32 x 128"))
    return _joined(parts)


def _tables(results: Path, tables: Tables, shown: Collection[Path] = ()) -> list[str]:
    return [
        make(_read(path)) for pattern, make in tables for path in sorted(results.glob(pattern)) if path not in shown
    ]


def _joined(parts: Sequence[str]) -> str:
    return "\n\n".join(part for part in parts if part) or "No measurements are committed yet."


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def latency(doc: dict[str, Any]) -> str:
    """One document of `approxrt bench`: its times, and ours over the peers."""
    return "\n\n".join(part for part in (table(doc), ratio_table(doc)) if part)


# CPU flags, the one that matters most first, and what to call a CPU that has it.
ISA_NAMES = (
    ("amx_int8", "AMX"),
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


def ratio_table(doc: dict[str, Any]) -> str:
    """Ours over the groups of peers that users compare with, by workload."""
    entries = doc.get("ratios", [])
    if not entries:
        return ""
    groups = [("openvino_int8", "OpenVINO int8"), ("best_f32", "best f32 peer"), ("torch_eager", "torch eager")]
    workloads = list(dict.fromkeys(entry["workload"] for entry in entries))
    lines = [
        "Times faster than OpenVINO int8 / the best f32 peer / torch eager:",
        "",
        "| engine | " + " | ".join(workloads) + " |",
        "|---|" + "---:|" * len(workloads),
    ]
    for engine in dict.fromkeys(entry["engine"] for entry in entries):
        over = {entry["workload"]: entry["over"] for entry in entries if entry["engine"] == engine}
        cells = [
            " / ".join(f"{over[w][key]['ratio']:.1f}" if key in over[w] else "-" for key, _ in groups)
            for w in workloads
        ]
        lines.append(f"| {engine} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def profile_table(before: dict[str, Any], after: dict[str, Any], engine: str, workload: str) -> str:
    """Thread time by operator of two documents with profiles, and the rate of what multiplies."""

    def find(doc: dict[str, Any]) -> dict[str, Any]:
        return next(p for p in doc["profiles"] if (p["engine"], p["workload"]) == (engine, workload))

    old, new = find(before), find(after)
    lines = [
        f"**Where the time goes**: {engine}, {workload}, {new['threads']} threads, {new['isa']}, by "
        f"`approxrt bench --profile`. Milliseconds of thread time a batch at commits {before['commit'][:7]} and "
        f"{after['commit'][:7]} (different runs: machine noise is in the difference).",
        "",
        "| operator | before | after | GMAC/s a thread, before | after |",
        "|---|---:|---:|---:|---:|",
    ]
    was = {op["op"]: op for op in old["ops"]}
    for op in new["ops"]:
        rates = [f"{o['gmacs_per_s']:.0f}" if o and o["gmacs_per_s"] else "-" for o in (was.get(op["op"]), op)]
        ms = f"{was[op['op']]['ms']:.1f}" if op["op"] in was else "-"
        lines.append(f"| {op['op']} | {ms} | {op['ms']:.1f} | {rates[0]} | {rates[1]} |")
    lines.append(f"| wall time | {old['wall_ms']:.1f} | {new['wall_ms']:.1f} | | |")
    return "\n".join(lines)


def cold_table(doc: dict[str, Any]) -> str:
    """bench/bench_cold_start.py: one row a contestant."""
    lines = [
        "**Import, load and first answer in a fresh process** (medians, p20 to p80), on one text.",
        "",
        "| contestant | s from process start | s from first statement | resident MB | resident MB over its files |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in doc["rows"]:
        spans = [
            f"{row[key]:.2f} ({row[key + '_p20']:.2f} to {row[key + '_p80']:.2f})" for key in ("process_s", "answer_s")
        ]
        lines.append(
            f"| {row['name']} | {spans[0]} | {spans[1]} | {row['resident_mb']:.0f} | "
            f"{row['resident_above_size_mb']:.0f} |"
        )
    return "\n".join(lines)


def thread_table(doc: dict[str, Any]) -> str:
    """bench/bench_threads.py: what a second thread brings."""
    rows = [row for row in doc["scaling"] if row["threads"] > 1]
    lines = [
        "**Threads**: times faster with 2 than with 1.",
        "",
        "| artifact | " + " | ".join(dict.fromkeys(row["workload"] for row in rows)) + " |",
        "|---|" + "---:|" * len(dict.fromkeys(row["workload"] for row in rows)),
    ]
    for artifact in dict.fromkeys(row["artifact"] for row in rows):
        cells = [f"{row['speedup']:.2f}x" for row in rows if row["artifact"] == artifact]
        lines.append(f"| {artifact} | " + " | ".join(cells) + " |")
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


def sign_table(doc: dict[str, Any]) -> str:
    """bench/bench_sign_attention.py: a row a length and width of a head, a column a number of kept keys."""
    names = list(dict.fromkeys(name for row in doc["rows"] for name in row["times"] if name.startswith("sign")))
    lines = [
        f"**Sign-matching attention** on {doc['machine']['cpu']}, one head of one sequence, one core: how many times "
        "faster than our own dense attention with 16-bit products / in float32 / than PyTorch's SDPA in float32, by "
        "how many keys a query keeps (all others stand as their mean). Under 1 it does not pay.",
        "",
        "| keys | head size | " + " | ".join(f"{name.split()[1]} kept" for name in names) + " |",
        "|---:|---:|" + "---:|" * len(names),
    ]
    for row in doc["rows"]:
        ms = {name: t["median_ms"] for name, t in row["times"].items()}
        peers = ("dense int16", "dense f32", "torch SDPA f32")
        cells = [" / ".join(f"{ms[p] / ms[n]:.1f}" for p in peers) if n in ms else "-" for n in names]
        lines.append(f"| {row['n']} | {row['head_dim']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sign_decoding_table(doc: dict[str, Any]) -> str:
    """bench/bench_sign_decoding.py: a row a context."""
    signs, (some, layers) = doc["signs"], doc["layers"]
    lines = [
        f"**Decoding with signs beside the cache** on {doc['machine']['cpu']}, {doc['threads']} threads, "
        f"SmolLM2-135M ({doc['model']}): {some} of {layers} layers attend, from {signs['from']} keys on, to the "
        f"{signs['keep']} whose {signs['codes']} signs match best and to the last {signs['window']}. Tokens a second, "
        "medians in turns (p20 to p80), and perplexity on WikiText-2 test.",
        "",
        "| tokens in the cache | decode, all keys | decode, kept keys | prompt, all keys | prompt, kept keys | "
        "perplexity, all | perplexity, kept |",
        "|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in doc["rows"]:
        cells = [str(row["context"])]
        for what in ("decode", "prompt"):
            base, ours = (row["times"][name][what] for name in ("all keys", "kept keys"))
            cells.append(f"{base['median']:.0f} ({base['p20']:.0f} to {base['p80']:.0f})")
            ratio = ours["median"] / base["median"]
            cells.append(f"{ours['median']:.0f} ({ours['p20']:.0f} to {ours['p80']:.0f}), {ratio:.2f}x")
        before, after = (row["perplexity"][name] for name in ("all keys", "kept keys"))
        cells += [f"{before:.2f}", f"{after:.2f} ({100 * (after / before - 1):+.2f} %)"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def serving_table(doc: dict[str, Any]) -> str:
    """bench/bench_serving.py: a row a server and a number of clients."""
    lines = [
        f"**Serving** on {doc['machine']['cpu']}, {doc['threads']} cores for server and load together: SST-2's dev "
        f"sentences over loopback, one a request, each client with one request under way. The bare engine does "
        f"{doc['bare_engine_texts_s']:.0f} sentences a second in one call on the same cores; the share is of that.",
        "",
        "| server | clients | requests/s | share of the bare engine | p50 ms | p99 ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in doc["rows"]:
        lines.append(
            f"| {row['server']} | {row['clients']} | {row['requests_s']:.0f} | {row['share_of_engine']:.0%} "
            f"| {row['p50_ms']:.1f} | {row['p99_ms']:.1f} |"
        )
    return "\n".join(lines)


# How the rows of bench/bench_generate.py come about, by the artifact's name.
GENERATE_ROWS = {
    "int8": "`convert`",
    "bits5": "`convert --bits 5`, the file's own 4-bit weights",
    "bits5-table6": "`convert --bits 5 --table-bits 6`",
    "bits5-preview": "`convert --bits 5 --head-preview valid.txt`",
    "int4": "`convert --bits 4`",
    "float32": "`convert --bits 32`",
    "compressed": "`compress --task lm --data valid.txt --max-drop 1% --budget 17m`",
}


def _generate_rows(doc: dict[str, Any]) -> str:
    """Which command made which row."""
    return _made_by(row["engine"] for row in doc["rows"])


def _made_by(engines: Iterable[str]) -> str:
    names = [engine.partition(":")[2] for engine in engines]
    return "; ".join(f"`{name}`: {GENERATE_ROWS[name]}" for name in names if name in GENERATE_ROWS) + "."


def _ids(sizes: dict[str, Any]) -> str:
    """Return what is read: a preview of the head depends on it."""
    return "random ids" if sizes.get("ids", "random") == "random" else "WikiText-2's test text"


def generate_table(doc: dict[str, Any]) -> str:
    """bench/bench_generate.py: a row an engine."""
    peer = next(row for row in doc["rows"] if not row["engine"].startswith(OURS))
    sizes, machine = doc["sizes"], doc["machine"]
    isa = next((name for flag, name in ISA_NAMES if flag in machine["isa"]), "-")
    lines = [
        f"**{doc['model']}** on {machine['cpu']} ({isa}), {doc['threads']} threads, llama-cpp-python "
        f"{doc['versions']['llama-cpp-python']}. Tokens a second, medians of {sizes['rounds']} rounds in turns in one "
        f"run (p20 to p80); in brackets: times llama.cpp's. Prompt: {sizes['prompt_tokens']} tokens of {_ids(sizes)}. "
        f"Decode: {sizes['new_tokens']} tokens after {sizes['before']}, one sequence; batch: "
        f"{sizes['batch']} sequences, all tokens counted.",
        "",
        "| engine | MB of weights | perplexity | prompt | decode | batch |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    found = doc.get("perplexity", {})
    best = found.get(peer["engine"])
    for row in doc["rows"]:
        cells = []
        for what in ("prompt", "decode"):
            rate = row[what]
            ratio = "" if row is peer else f" ({rate['median'] / peer[what]['median']:.2f}x)"
            cells.append(f"{rate['median']:.0f} ({rate['p20']:.0f} to {rate['p80']:.0f}){ratio}")
        batch = f"{row['batch']['median']:.0f}" if "batch" in row else "-"
        own = found.get(row["engine"])
        change = f" ({100 * (own / best - 1):+.1f} %)" if own and best and row is not peer else ""
        lines.append(
            f"| {row['engine']} | {row['megabytes']:.0f} | {'-' if own is None else f'{own:.3f}{change}'} | "
            f"{cells[0]} | {cells[1]} | {batch} |"
        )
    if found:
        windows = doc["windows"]
        lines += [
            "",
            f"Perplexity: the first {windows['tokens']:,} tokens of WikiText-2's test text, windows of "
            f"{windows['context']} tokens that move by {windows['stride']}; in brackets: over llama.cpp's. float32 in "
            f"our engine: {found.get('approxrt:float32', float('nan')):.3f}. {_generate_rows(doc)}",
        ]
    return "\n".join(lines)


def perplexity_table(doc: dict[str, Any]) -> str:
    """bench/bench_generate.py perplexity on a whole text: a row an engine."""
    windows, found, sizes = doc["windows"], doc["perplexity"], doc["megabytes"]
    peer = found.get("llama.cpp")
    lines = [
        f"**Perplexity of {doc['model']}** on all {windows['tokens']:,} tokens of WikiText-2's test text, windows of "
        f"{windows['context']} tokens that move by {windows['stride']}; in brackets: over llama.cpp's. "
        f"{_made_by(found)}",
        "",
        "| engine | MB of weights | perplexity |",
        "|---|---:|---:|",
    ]
    for name, value in sorted(found.items(), key=lambda item: item[1]):
        change = f" ({100 * (value / peer - 1):+.2f} %)" if peer and name != "llama.cpp" else ""
        lines.append(f"| {name} | {sizes[name]:.0f} | {value:.3f}{change} |")
    return "\n".join(lines)


README_TABLES: Tables = (
    ("latency-minilm-zen4.json", latency),
    ("generate.json", generate_table),
    ("serving.json", serving_table),
)
MORE_TABLES: Tables = (
    ("latency-*.json", latency),
    ("cold-start.json", cold_table),
    ("threads.json", thread_table),
    ("accuracy-*.json", accuracy_table),
    ("sign-attention.json", sign_table),
    ("sign-decoding.json", sign_decoding_table),
    ("perplexity.json", perplexity_table),
)
FILES: dict[str, Callable[[Path], str]] = {"README.md": render, "docs/benchmarks.md": render_more}


def updated(text: str, tables: str) -> str:
    """A file's text with its results replaced. ValueError when a marker is missing."""
    head, found_begin, rest = text.partition(BEGIN)
    _, found_end, tail = rest.partition(END)
    if not found_begin or not found_end:
        raise ValueError(f"the file must contain the lines {BEGIN!r} and {END!r}")
    return f"{head}{BEGIN}\n{tables}\n{END}{tail}"


def main() -> None:
    """Rewrite the files, or compare with --check."""
    for name, make in FILES.items():
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = updated(old, make(ROOT / "bench" / "results"))
        if "--check" not in sys.argv[1:]:
            path.write_text(new, encoding="utf-8")
        elif old != new:
            sys.exit(f"{name} is out of date: make readme")


if __name__ == "__main__":
    main()
