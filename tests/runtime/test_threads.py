"""The default number of threads: affinity, quota, cores; and the plan of passes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from approxrt.errors import InputError
from approxrt.runtime import threads
from approxrt.runtime.batching import plan_batches


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_quota_v2_of_own_group_and_ancestors(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    write(proc, "0::/kubepods/pod1/box\n")
    write(root / "kubepods/pod1/box/cpu.max", "max 100000\n")
    assert threads.cgroup_quota(root, proc) is None
    write(root / "kubepods/pod1/cpu.max", "150000 100000\n")
    assert threads.cgroup_quota(root, proc) == 1.5
    write(root / "cpu.max", "50000 100000\n")
    assert threads.cgroup_quota(root, proc) == 0.5


def test_quota_v1(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    write(proc, "4:memory:/x\n3:cpu,cpuacct:/docker/abc\n")
    write(root / "cpu/docker/abc/cpu.cfs_quota_us", "300000\n")
    write(root / "cpu/docker/abc/cpu.cfs_period_us", "100000\n")
    assert threads.cgroup_quota(root, proc) == 3.0
    write(root / "cpu/docker/abc/cpu.cfs_quota_us", "-1\n")
    assert threads.cgroup_quota(root, proc) is None


def test_no_cgroup_at_all(tmp_path: Path) -> None:
    assert threads.cgroup_quota(tmp_path / "none", tmp_path / "missing") is None


def test_hardware_threads_of_one_core_count_once(tmp_path: Path) -> None:
    for cpu in os.sched_getaffinity(0):
        write(tmp_path / f"cpu{cpu}/topology/thread_siblings_list", "0,1\n")
    assert threads.physical_cores(tmp_path) == 1


@pytest.mark.parametrize(
    ("affinity", "cores", "quota", "expected"),
    [(8, 4, None, 4), (2, 4, None, 2), (8, 8, 2.9, 2), (8, 8, 0.3, 1), (8, 8, 16.0, 8)],
)
def test_default_is_the_smallest(monkeypatch, affinity, cores, quota, expected) -> None:
    monkeypatch.setattr(threads, "affinity_count", lambda: affinity)
    monkeypatch.setattr(threads, "physical_cores", lambda: cores)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
    assert threads.default_threads() == threads.resolve_threads(None) == expected


@pytest.mark.parametrize("bad", [0, -1, 5000, 1.5, "2", True])
def test_bad_numbers_are_refused(bad: object) -> None:
    with pytest.raises(InputError, match=r"threads=.*1 to 1024"):
        threads.resolve_threads(bad)  # type: ignore[arg-type]


@given(lengths=st.lists(st.integers(1, 600), max_size=60), budget=st.integers(1, 1000))
def test_plan_covers_everything_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = plan_batches(lengths, budget)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert batch
        assert len(batch) == 1 or sum(lengths[i] for i in batch) <= budget
        assert [lengths[i] for i in batch] == sorted((lengths[i] for i in batch), reverse=True)
