"""A benchmark's result as one JSON document and as a table."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from approxrt.benchmark.measure import OURS
from approxrt.benchmark.ratios import GROUPS
from approxrt.benchmark.results import Result

if TYPE_CHECKING:
    from rich.console import RenderableType

SCHEMA = "approxrt.bench/1"
PACKAGES = ("approxrt", "numpy", "torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf")
INTERESTING_FLAGS = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512dq")
MORE_FLAGS = ("avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16")


def document(result: Result, **extra: Any) -> dict[str, Any]:
    """The JSON document: what was run, on what, with which versions, and the rows."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["approxrt", *sys.argv[1:]]),
        "commit": git_commit(),
        "machine": machine(),
        "versions": versions(),
        **extra,
        **result.to_json(),
    }


def machine() -> dict[str, Any]:
    """CPU model, cores, instruction sets that matter here, memory."""
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = set(value.split())
    except OSError:
        pass
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "isa": [flag for flag in (*INTERESTING_FLAGS, *MORE_FLAGS) if flag in flags],
        "memory_gb": round(memory / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Versions of the packages whose speed was measured, and of Python."""
    out = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def git_commit() -> str | None:
    """The commit of approxrt's own checkout, with "+" when the tree differs from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def tables(doc: dict[str, Any]) -> list[RenderableType]:
    """Rich tables: engines (load, memory, size, answers), then times and ratios by workload."""
    from rich.table import Table

    machine_line = f"{doc['machine']['cpu']}, {doc['threads']} threads"
    about = Table(title=f"Engines ({machine_line})", title_justify="left")
    for column in ("engine", "load s", "first answer s", "memory MB", "model MB", "max |Δ| to f32", "same winner"):
        about.add_column(column, justify="left" if column == "engine" else "right", no_wrap=column == "engine")
    for engine in doc["engines"]:
        agreement = engine.get("agreement")
        about.add_row(
            engine["name"],
            _number(engine.get("load_s"), 2),
            _number(engine.get("first_answer_s"), 2),
            _number(engine.get("rss_mb"), 0),
            _number(engine.get("size_mb"), 1),
            _number(engine.get("max_deviation"), 4),
            "-" if agreement is None else f"{100 * agreement:.0f} %",
        )
    ours = [engine["name"] for engine in doc["engines"] if engine["family"] == OURS]
    times = Table(title="Times, interleaved: milliseconds a batch", title_justify="left")
    for column in ("batch x tokens", "engine", "p20", "median", "p80", "texts/s"):
        times.add_column(column, justify="left" if column in ("batch x tokens", "engine") else "right", no_wrap=True)
    for name in ours:
        times.add_column(f"{name} is faster by", justify="right")
    last = None
    for row in doc["rows"]:
        if last not in (None, row["workload"]):
            times.add_section()
        times.add_row(
            row["workload"] if row["workload"] != last else "",
            row["engine"],
            _number(row["p20_ms"], 2),
            f"[bold]{row['median_ms']:.2f}[/]",
            _number(row["p80_ms"], 2),
            _number(row["texts_per_s"], 0),
            *("-" if name == row["engine"] else f"{row['speedup_of'][name]:.2f}x" for name in ours),
        )
        last = row["workload"]
    return [about, times, *_ratio_table(doc), *(f"left out: {name}: {why}" for name, why in doc["left_out"].items())]


def _ratio_table(doc: dict[str, Any]) -> list[RenderableType]:
    """Times faster than the groups of peers that were measured, and the share of the limit."""
    from rich.table import Table

    entries = doc["ratios"]
    groups = [(key, title) for key, title, _ in GROUPS if any(key in entry["over"] for entry in entries)]
    table = Table(title="Times faster than ..., medians of the same run", title_justify="left")
    for column in ("batch x tokens", "engine"):
        table.add_column(column, no_wrap=True)
    for column in (*(title for _, title in groups), "limit ms", "share of limit"):
        table.add_column(column, justify="right")
    for entry in entries:
        cells = []
        for key, _ in groups:
            over = entry["over"].get(key)
            named = f" ({over['peer']})" if over and key.startswith("best") else ""
            cells.append(f"{over['ratio']:.2f}x{named}" if over else "-")
        share = entry.get("share_of_limit")
        cells += [_number(entry.get("limit_ms"), 2), "-" if share is None else f"{100 * share:.0f} %"]
        table.add_row(entry["workload"], entry["engine"], *cells)
    return [table]


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
