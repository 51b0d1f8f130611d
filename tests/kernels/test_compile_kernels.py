"""Every GPU kernel compiles for sm_80 and sm_90 without spills, within shared memory, onto tensor cores.

In a process of its own: the tests of tests/gpu may have made this one's triton an interpreter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from paths import ROOT

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("triton", "torch")), reason="needs triton and torch"
)

COMMAND = [sys.executable, "-m", "approxrt.kernels.compile_report", "--json"]


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env={**clean, **env}, check=False)


@pytest.mark.slow
def test_all_kernels() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["sm"] for row in rows} == {80, 90}
    assert not [row for row in rows if row["spill_bytes"] or row["faults"]]
    # What must be on tensor cores is; Hopper's own instructions where a tile has the 64 rows that they need.
    seen = {(row["kernel"], row["sm"]): row["mma"] for row in rows}
    assert seen["gemm_int8 4096x3072x768 gelu", 90] == ["IGMMA"]
    assert seen["gemm_int8 4096x3072x768 gelu", 80] == ["IMMA"]
    assert seen["gemm_bsr_int8 m=4096 64x64", 90] == ["IGMMA"]
    assert seen["attention 4096 queries d=64 fp16", 90] == ["HGMMA"]
    helpers = {"__init__", "numerics", "epilogue", "launch", "compile_report"}
    files = {path.stem for path in (ROOT / "kernels").glob("*.py")} - helpers
    assert {row["kernel"].split()[0] for row in rows} == files, "every kernel's file has a case"


def test_interpreting_is_refused() -> None:
    done = run(TRITON_INTERPRET="1")
    assert done.returncode == 1 and "unset it" in done.stderr
