"""Runs the GPU's parts one after the other, each in a process with a time limit, and gathers one JSON report.

A part is a script of this folder that writes its rows to the file named by --out as it goes (`common.Rows`). A part
that fails, hangs or dies is noted with the end of its log, and the next one starts: the report holds what it had
written until then.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PACKAGES = ("torch", "triton", "transformers", "numpy", "tokenizers", "safetensors", "pytest")
TOTAL_SECONDS = 525.0  # of 9 minutes, with some left for starting and ending
NO_GPU = 3
LOG_TAIL = 4000


@dataclass(frozen=True)
class Part:
    """`command` may hold {python}, {out} (its rows) and {site}; at most `seconds`."""

    name: str
    command: tuple[str, ...]
    seconds: float


def parts(site: Path) -> list[Part]:
    """In the order of their worth, should the time run out; the build is first, since tests use it."""
    script = ("{python}", str(HERE / "{name}.py"), "--out", "{out}")

    def own(name: str, seconds: float, *more: str) -> Part:
        return Part(name, tuple(word.replace("{name}", name) for word in (*script, *more)), seconds)

    build = "{python} setup.py -q build_ext --build-lib build/gpu/lib --build-temp build/gpu/temp && " + (
        f"cp build/gpu/lib/approxrt/_C*.so {site}/approxrt/"
    )
    # Without the current folder on the path, where `approxrt` has no kernels: the site comes first.
    start = "import sys, pytest; sys.path = [p for p in sys.path if p]; sys.exit(pytest.main(sys.argv[1:]))"
    tests = ["{python}", "-c", start, "-q", "--confcutdir", "tests/gpu", "-p", "no:cacheprovider", "tests/gpu"]
    if importlib.util.find_spec("xdist"):
        tests += ["-n", "8"]  # a test's time is that of compiling its kernels
    # All limits together fit the whole time: no part can take another's.
    return [
        Part("build", ("bash", "-c", build), 70),
        own("check", 60),
        own("tune", 55),
        own("bench_encoder", 130),
        own("bench_kernels", 60),
        own("bench_decoder", 60),
        Part("tests", tuple(tests), 90),
    ]


def run_part(part: Part, folder: Path, limit: float, site: Path) -> dict[str, Any]:
    """Run it for `limit` seconds at most; what came of it. Its process group is gone afterwards."""
    rows, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    rows.unlink(missing_ok=True)
    words = {"{python}": sys.executable, "{out}": str(rows), "{site}": str(site)}
    command = [_replace(word, words) for word in part.command]
    start = time.monotonic()
    timed_out = False
    with log.open("wb") as sink:
        try:
            process = subprocess.Popen(command, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
        except OSError as error:
            return {"ok": False, "error": str(error), "seconds": 0.0, "rows": []}
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            timed_out, code = True, None
        finally:
            # Also what the part left running: workers of a compiler, a benchmark's children.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    text = log.read_text(errors="replace")
    return {
        "ok": code == 0,
        "exit": code,
        "timed_out": timed_out,
        "limit_seconds": round(limit, 1),
        "seconds": round(time.monotonic() - start, 1),
        "rows": read_rows(rows),
        "log": text[-LOG_TAIL:] if code != 0 else text[-400:],
    }


def read_rows(path: Path) -> list[Any]:
    """Return what a part wrote; nothing if it wrote nothing that can be read."""
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return rows if isinstance(rows, list) else []


def _replace(word: str, words: dict[str, str]) -> str:
    for name, value in words.items():
        word = word.replace(name, value)
    return word


def describe() -> dict[str, Any]:
    """The device, versions and commit; `gpu` is None when there is none that torch sees."""
    facts: dict[str, Any] = {
        "commit": _output("git", "rev-parse", "HEAD"),
        "changed_files": len((_output("git", "status", "--porcelain", "--untracked-files=no") or "").splitlines()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpu": None,
        "why_no_gpu": None,
    }
    try:
        import torch
    except ImportError as error:
        return {**facts, "why_no_gpu": f"torch cannot be imported: {error}"}
    if not torch.cuda.is_available():
        return {**facts, "why_no_gpu": f"torch {torch.__version__} (CUDA {torch.version.cuda}) sees no GPU"}
    found = torch.cuda.get_device_properties(0)
    facts["gpu"] = {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_gib": round(found.total_memory / 2**30, 1),
        "cuda": torch.version.cuda,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "clocks": _output(
            "nvidia-smi", "--query-gpu=clocks.max.sm,clocks.max.mem,power.limit", "--format=csv,noheader"
        ),
    }
    return facts


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_all(todo: list[Part], out: Path, site: Path, facts: dict[str, Any], total: float) -> bool:
    """Run the parts within `total` seconds, writing `out` after each; whether all of them were well."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.parent / f"{out.stem}-parts"
    folder.mkdir(exist_ok=True)
    report = {**facts, "total_seconds": total, "parts": {}}
    start = time.monotonic()
    for part in todo:
        left = total - (time.monotonic() - start)
        if left < min(10.0, part.seconds):
            result: dict[str, Any] = {"ok": False, "error": f"not started: {left:.0f} s were left", "rows": []}
        else:
            result = run_part(part, folder, min(part.seconds, left), site)
        report["parts"][part.name] = result
        write_whole(out, report)
        state = "ok" if result["ok"] else "TIMED OUT" if result.get("timed_out") else "FAILED"
        print(f"{part.name:10} {state:10} {result.get('seconds', 0):6.1f} s  {len(result['rows'])} rows", flush=True)
    return all(result["ok"] for result in report["parts"].values())


def write_whole(path: Path, data: Any) -> None:
    """The file is always a whole one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(temporary, path)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build, test and measure on a GPU.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--site", type=Path, required=True, help="folder that `approxrt` is imported from")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for all parts together")
    parser.add_argument("--only", nargs="*", default=None, help="names of parts")
    options = parser.parse_args()
    facts = describe()
    if facts["gpu"] is None:
        write_whole_in(options.out, {**facts, "parts": {}})
        print(
            f"bench/gpu: there is no GPU here: {facts['why_no_gpu']}. Nothing was measured. It needs an NVIDIA GPU of "
            "compute capability 8.0 or later, its driver, and a CUDA build of torch with triton.",
            file=sys.stderr,
        )
        return NO_GPU
    print(
        f"{facts['gpu']['name']}, torch {facts['packages']['torch']}, triton {facts['packages']['triton']}", flush=True
    )
    todo = [part for part in parts(options.site) if options.only is None or part.name in options.only]
    well = run_all(todo, options.out, options.site, facts, options.seconds)
    print(options.out)
    return 0 if well else 1


def write_whole_in(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


if __name__ == "__main__":
    sys.exit(main())
