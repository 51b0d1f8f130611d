"""The kernels' microbenchmarks: one for every family, all of them run, and their report."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from approxrt import _C

BENCH = ROOT / "bench"
FAMILIES = sorted({row["family"] for row in _C.kernel_list()})


@pytest.fixture(scope="module")
def kernel_report() -> Any:
    spec = importlib.util.spec_from_file_location("kernel_report", BENCH / "kernel_report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*arguments: str) -> str:
    command = [sys.executable, *arguments]
    # A worker's environment would have the benchmarks of the process below switched off.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_benchmark(family: str) -> None:
    assert f"def test_{family}(" in (BENCH / f"bench_{family}.py").read_text(encoding="utf-8")


def test_benchmarks_run_and_report(tmp_path: Path) -> None:
    """The smallest shape of each family, by what `make microbench` calls."""
    pytest.importorskip("pytest_benchmark")
    smallest = {
        "activation": "scalar-gelux1x1536",
        "attention": "scalar-16x32",
        "attention_int16": "scalar-16x32",
        "cache_write": "scalar-f16x1x64",
        "cached_attention": "scalar-f16x64x1",
        "embedding": "scalar-int8x1x384",
        "gated": "scalar-1x1536",
        "gemm_f32": "scalar-1x384x384",
        "gemm_groups": "scalar-1x576x576",
        "gemm_int4": "scalar-1x384x384x0.25",
        "gemm_int8": "scalar-1x384x384x0.25",
        "gemv_int4": "scalar-1x576x576",
        "gemv_int8": "scalar-1x576x576",
        "hadamard": "scalar-1x1536x128",
        "layer_norm": "scalar-1x384",
        "quantize_groups": "scalar-1x576",
        "quantize_rows": "scalar-1x384",
        "quantize_rows_u8": "scalar-1x384",
        "quantize_tokens": "scalar-1x576",
        "rms_norm": "scalar-1x576",
        "rope": "scalar-1x9x64",
        "schur_complement": "scalar-96x4",
        "shortlist": "scalar-24576",
        "sign_attention": "scalar-64x32x16",
        "sign_cached_attention": "scalar-f16x512x1",
        "sign_index": "scalar-f16x1",
        "softmax": "scalar-16x16",
        "word_logits": "scalar-64x576",
    }
    assert sorted(smallest) == FAMILIES
    ids = [f"bench/bench_{family}.py::test_{family}[{case}]" for family, case in smallest.items()]
    raw = tmp_path / "run.json"
    options = ["-q", "-p", "no:cacheprovider", "--benchmark-only"]
    run("-m", "pytest", *options, f"--benchmark-json={raw}", *ids)
    run("bench/kernel_report.py", str(raw), "--name", "here", "--out", str(tmp_path))
    doc = json.loads((tmp_path / "kernels-here.json").read_text(encoding="utf-8"))
    assert doc["schema"] == "approxrt.kernels/1"
    assert "--benchmark-only" in doc["command"]
    assert {"date", "commit", "machine", "versions"} <= set(doc)
    rows = {row["kernel"]: row for row in doc["rows"]}
    assert sorted(rows) == FAMILIES
    for family, row in rows.items():
        assert row["isa"] == "scalar"
        assert 0 < row["p20_us"] <= row["median_us"] <= row["p80_us"]
        assert row["rate"] > 0
        products = family in (
            "gemm_groups",
            "gemm_int4",
            "gemm_int8",
            "gemm_f32",
            "attention",
            "attention_int16",
            "sign_attention",
            "cached_attention",
            "sign_cached_attention",
            "schur_complement",
        )
        assert row["rate_unit"] == ("GMAC/s" if products else "GB/s")
        assert ("share_of_peak" in row) == products
        # No core does this many a second: the compiler has removed the peak's loop.
        assert row.get("peak", 0) < 1000
    for sparse in (rows["gemm_int4"], rows["gemm_int8"]):
        assert sparse["dense_equivalent"] / sparse["rate"] == pytest.approx(4, rel=0.2)


def test_report_of_a_run(kernel_report: Any) -> None:
    shape = {"tokens": 16, "k": 384, "n": 384, "density": 0.5}
    extra = {"isa": "avx2", "shape": shape, "rate": 12.34567, "rate_unit": "GMAC/s", "share_of_peak": 0.76543}
    stats = {"median": 3e-6, "rounds": 5, "data": [1e-6, 2e-6, 3e-6, 4e-6, 6e-6]}
    entry = {"name": "test_gemm_int8[avx2-16x384x384x0.5]", "stats": stats, "extra_info": extra}
    context = {"command": "pytest bench", "commit": "abc", "machine": {"cpu": "A CPU"}, "versions": {"python": "3"}}
    doc = kernel_report.document({"approxrt": context, "benchmarks": [entry]})
    assert {key: doc[key] for key in context} == context
    assert doc["rows"] == [
        {
            "kernel": "gemm_int8",
            "isa": "avx2",
            "shape": shape,
            "median_us": 3.0,
            "p20_us": 1.8,
            "p80_us": 4.4,
            "rounds": 5,
            "rate": 12.35,
            "rate_unit": "GMAC/s",
            "share_of_peak": 0.7654,
        }
    ]
    without_data = {**entry, "stats": {"median": 3e-6, "rounds": 5}}
    assert "p20_us" not in kernel_report.row(without_data)


def test_name_of_a_report(kernel_report: Any) -> None:
    assert kernel_report.default_name({"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz"}) == "intel-xeon"
    assert kernel_report.default_name({"cpu": ""}) == "cpu"
