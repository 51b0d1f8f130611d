"""Count the threads that this process may use: what the scheduler, the container and the cores allow."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path

from approxrt.errors import InputError, ThreadsWarning

MAX_THREADS = 1024


def default_threads() -> int:
    """min(CPU affinity, cgroup quota, physical cores), at least 1."""
    limits = [affinity_count(), physical_cores()]
    quota = cgroup_quota()
    if quota is not None:
        limits.append(max(1, math.floor(quota)))
    return max(1, min(limits))


def resolve_threads(threads: int | None) -> int:
    """The asked number, checked, or the default."""
    if threads is None:
        return default_threads()
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads={threads!r}: expected an integer from 1 to {MAX_THREADS}, or None for the default")
    return threads


def warn_of_missing_threads(threads: int, missing: int) -> None:
    """Say that an engine goes on with fewer threads than it asked for, and how to get them or do without."""
    there = threads - missing
    warnings.warn(
        f"threads={threads}, but the system gave only {there} (a limit of processes, such as ulimit -u or pids.max, or "
        f"of memory): answers are the same, but come later. Raise the limit, or ask for fewer: threads={there} "
        f"(--threads {there})",
        ThreadsWarning,
        stacklevel=3,
    )


def affinity_count() -> int:
    """CPUs that this process may be scheduled on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores among the CPUs of the affinity mask: hardware threads of one core count once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = set()
    for cpu in os.sched_getaffinity(0):
        try:
            cores.add((topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip())
        except OSError:
            cores.add(f"cpu{cpu}")
    return max(1, len(cores))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc/self/cgroup")) -> float | None:
    """CPUs that the cgroup's quota grants (v2 cpu.max, else v1 cfs quota), or None when unlimited.

    Every ancestor's quota binds, so the smallest on the way up to the root counts.
    """
    quotas = []
    for group in _cgroup_folders(root, proc):
        quota = _quota_v2(group) or _quota_v1(group)
        if quota is not None:
            quotas.append(quota)
    return min(quotas, default=None)


def _cgroup_folders(root: Path, proc: Path) -> list[Path]:
    folders = [root, root / "cpu"]
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        folder = base / path.lstrip("/")
        while folder not in (base, folder.parent):
            folders.append(folder)
            folder = folder.parent
    return folders


def _quota_v2(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(group: Path) -> float | None:
    try:
        quota = int((group / "cpu.cfs_quota_us").read_text())
        period = int((group / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
