"""Levels: detection, the list of kernels, and what a forced level does."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from levels import ALL, SUPPORTED, every_level_of_linears
from paths import ROOT

from approxrt import _C
from approxrt.errors import DeviceError
from approxrt.runtime.cpu import engine as cpu
from approxrt.runtime.cpu.engine import forced_isa, suitable_isa

INCLUDED = {
    "scalar": {"scalar"},
    "avx2": {"scalar", "avx2"},
    "avxvnni": {"scalar", "avx2", "avxvnni"},
    "avx512": {"scalar", "avx2", "avx512"},
    "avx512vnni": {"scalar", "avx2", "avx512", "avx512vnni"},
    "amx": {"scalar", "avx2", "avx512", "avx512vnni", "amx"},
}


def test_supported_levels_are_in_order_with_all_they_include() -> None:
    assert [isa for isa in ALL if isa in SUPPORTED] == list(SUPPORTED)
    assert _C.detected_isa() == SUPPORTED[-1]
    for isa in SUPPORTED:
        assert INCLUDED[isa] <= set(SUPPORTED)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo to compare with")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="levels above scalar are x86-64")
def test_detection_agrees_with_the_kernel() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split("flags", 1)[1].split("\n", 1)[0].split())
    assert ("avx2" in SUPPORTED) == {"avx2", "fma", "f16c"}.issubset(flags)
    wide = {"avx512f", "avx512bw", "avx512vl", "avx512dq"}.issubset(flags)
    assert ("avx512" in SUPPORTED) == wide
    assert ("avx512vnni" in SUPPORTED) == (wide and "avx512_vnni" in flags)
    # The system may refuse a process the tile registers.
    assert "amx" not in SUPPORTED or {"amx_tile", "amx_int8"}.issubset(flags)
    assert ("avxvnni" in SUPPORTED) == ("avx2" in SUPPORTED and "avx_vnni" in flags)


def test_every_family_has_a_scalar_definition_and_a_source_file() -> None:
    rows = _C.kernel_list()
    families = {row["family"] for row in rows}
    assert {row["family"] for row in rows if row["isa"] == "scalar"} == families
    sources = ROOT / "csrc" / "kernels"
    for row in rows:
        assert (sources / row["family"] / f"{row['isa']}.cpp").is_file(), row


@pytest.mark.parametrize("isa", ALL)
def test_kernels_of_this_level_are_tested(isa: str) -> None:
    """A skip here stands for the kernels' tests of that level, which are not even collected."""
    if isa not in SUPPORTED:
        pytest.skip(f"this CPU or system has no {isa}: its kernels are not tested here")
    tested = {every.args[0]: every.args[1] for every in (every_level_of_linears.mark,)}
    assert isa in tested["isa"]


@pytest.mark.parametrize("isa", SUPPORTED)
def test_a_level_uses_the_best_kernel_it_includes(isa: str) -> None:
    chosen = _C.chosen_kernels(isa)
    assert set(chosen) == {row["family"] for row in _C.kernel_list()}
    for family, level in chosen.items():
        levels = {row["isa"] for row in _C.kernel_list() if row["family"] == family}
        assert level == [usable for usable in ALL if usable in levels & INCLUDED[isa]][-1]


def test_every_level_above_scalar_has_its_own_int8_kernels() -> None:
    # On each of them another instruction multiplies; none may fall back unnoticed. AMX has none for 16 bits.
    for family in ("quantize_rows", "gemm_int8", "gemm_int4"):
        assert {row["isa"] for row in _C.kernel_list() if row["family"] == family} == set(ALL)
    assert {row["isa"] for row in _C.kernel_list() if row["family"] == "attention_int16"} == set(ALL) - {"amx"}


def test_forced_level_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for isa in SUPPORTED:
        monkeypatch.setenv("APPROXRT_ISA", isa)
        assert forced_isa() == isa


def test_models_that_amx_does_not_help_run_a_level_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("APPROXRT_ISA", raising=False)
    assert suitable_isa(("bsr_s8",)) == ("avx512vnni" if forced_isa() == "amx" else forced_isa())
    monkeypatch.setattr(cpu, "forced_isa", lambda: "amx")
    assert suitable_isa(("f32", "s8", "s4")) == "amx"
    for other in ("bsr_s8", "bsr_s4", "g4", "g6", "g8"):
        assert suitable_isa(("s8", other)) == "avx512vnni"
    # Who names a level gets it.
    monkeypatch.setenv("APPROXRT_ISA", "amx")
    assert suitable_isa(("bsr_s8",)) == "amx"


def test_unknown_level_raises_with_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPROXRT_ISA", "sse9")
    with pytest.raises(DeviceError, match=r"sse9.*scalar, avx2, avxvnni, avx512, avx512vnni, amx"):
        forced_isa()


@pytest.mark.skipif(SUPPORTED == ALL, reason="this CPU has every level")
def test_missing_level_raises_and_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = next(isa for isa in ALL if isa not in SUPPORTED)
    monkeypatch.setenv("APPROXRT_ISA", missing)
    with pytest.raises(DeviceError, match=f"{missing}.*only: scalar"):
        forced_isa()


def test_runtime_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, approxrt; approxrt.load, approxrt.convert, approxrt.Model; import approxrt.cli.main;"
        "print(sorted({'torch', 'transformers', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    root = ROOT
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=root, check=True)
    assert done.stdout.strip() == "[]"
