"""`approxrt doctor`: what this machine has and what will run where."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from approxrt.cli import output

OPTIONAL = ("torch", "transformers", "scikit-learn", "onnxruntime", "openvino", "nncf", "triton", "fastapi")


def command(json: bool = output.JSON_OPTION) -> None:
    """Show the CPU's instruction sets, cores and quota, and which kernels and extras are available."""
    report = examine()
    if json:
        output.emit_json(report)
        return
    cpu, threads = report["cpu"], report["threads"]
    lines = [
        f"approxrt {report['approxrt']}, Python {report['python']}, {report['platform']}",
        f"CPU       {cpu['model']}",
        f"levels    {', '.join(cpu['supported'])}; in use: {cpu['in_use']}"
        + (f" (APPROXRT_ISA={cpu['forced']})" if cpu["forced"] else ""),
        "kernels   " + ", ".join(f"{family} {isa}" for family, isa in report["kernels"].items()),
        f"threads   {threads['default']} by default: affinity {threads['affinity']}, physical cores "
        f"{threads['physical_cores']}, cgroup quota {threads['cgroup_quota'] or 'none'}",
        f"GPU       {report['gpu']}",
        "packages  " + ", ".join(f"{name} {found or '-'}" for name, found in report["packages"].items()),
    ]
    for line in lines:
        output.stdout.print(line, markup=False, highlight=False, soft_wrap=True)
    for note in report["notes"]:
        output.log(f"note: {note}")


def examine() -> dict[str, Any]:
    """Return what `doctor` reports, as plain data. Raises DeviceError when APPROXRT_ISA cannot be honoured."""
    import approxrt
    from approxrt import _C
    from approxrt.runtime import threads
    from approxrt.runtime.cpu.engine import forced_isa

    isa = forced_isa()
    return {
        "approxrt": approxrt.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {
            "model": cpu_model(),
            "supported": list(_C.supported_isas()),
            "in_use": isa,
            "forced": os.environ.get("APPROXRT_ISA") or None,
        },
        "kernels": dict(_C.chosen_kernels(isa)),
        "threads": {
            "default": threads.default_threads(),
            "affinity": threads.affinity_count(),
            "physical_cores": threads.physical_cores(),
            "cgroup_quota": threads.cgroup_quota(),
        },
        "gpu": gpu_status(),
        "packages": {name: _version(name) for name in OPTIONAL},
        "notes": _notes(isa),
    }


def gpu_status() -> str:
    """The GPU that device="cuda" would run on, or why it would not."""
    from approxrt.errors import ApproxrtError
    from approxrt.runtime.cuda.engine import require_cuda

    try:
        require_cuda()
    except ApproxrtError as error:
        return f"none: {error}"
    import torch

    memory = torch.cuda.get_device_properties().total_memory
    return f"{torch.cuda.get_device_name()}, {memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}"


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name as the system tells it."""
    try:
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _notes(isa: str) -> list[str]:
    if isa == "scalar":
        return ["this CPU has no AVX2 (or APPROXRT_ISA=scalar): kernels are correct but slow"]
    if isa in ("avx2", "avx512"):
        return [f"{isa} has no VNNI: int8 products run as exact 16-bit ones, at about half the rate"]
    if isa == "amx":
        return ["dense int8 and int4 models run on amx, block-sparse and grouped ones on avx512vnni"]
    return []
