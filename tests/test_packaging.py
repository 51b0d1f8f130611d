"""An installation holds packages, the extension, metadata; and a build's errors that say what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT


def run(*command: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(env or {})}, cwd=cwd, check=False
    )


def test_kernels_package_comes_from_its_own_folder(tmp_path: Path) -> None:
    """In an editable install `approxrt.kernels` maps to kernels/; from the source tree alone it is absent."""
    pytest.importorskip("approxrt.kernels", reason="approxrt is not installed (run from the source tree)")
    import approxrt.kernels

    assert "Triton" in (approxrt.kernels.__doc__ or "")
    done = run(sys.executable, "-c", "import kernels", cwd=tmp_path)
    assert done.returncode != 0, "`kernels` must not be a top-level package"


def test_a_build_without_a_compiler_says_so(tmp_path: Path) -> None:
    pytest.importorskip("pybind11", reason="the build needs pybind11")
    done = run(
        sys.executable, "setup.py", "build_ext", "--build-temp", str(tmp_path), "--build-lib", str(tmp_path),
        env={"CXX": "/nowhere/c++"},
    )  # fmt: skip
    assert done.returncode != 0
    assert "found no compiler (CXX=/nowhere/c++)" in done.stderr
    assert "apt-get install g++" in done.stderr


def test_every_package_is_named() -> None:
    """Packages are listed by hand, since kernels/ lies beside them: what is not named is not in a wheel."""
    tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml, from Python 3.11 on")
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {str(p.parent.relative_to(ROOT)).replace("/", ".") for p in (ROOT / "approxrt").rglob("__init__.py")}
    assert set(listed) == folders | {"approxrt.kernels"}


@pytest.mark.slow
def test_wheel_holds_everything_and_nothing_else(tmp_path: Path) -> None:
    pytest.importorskip("build", reason="needs the package `build`")
    pytest.importorskip("pybind11", reason="the build without isolation needs pybind11")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = {str(p.relative_to(ROOT)) for p in (ROOT / "approxrt").rglob("*.py")} | {
        f"approxrt/kernels/{p.relative_to(ROOT / 'kernels')}" for p in (ROOT / "kernels").rglob("*.py")
    }
    packed = {n for n in names if n.endswith(".py")}
    assert packed == sources
    assert any(n.startswith("approxrt/_C.") and n.endswith(".so") for n in names)
    assert not [n for n in names if n.startswith(("kernels/", "tests/", "bench/", "csrc/"))]


@pytest.mark.slow
def test_sdist_holds_what_a_build_needs(tmp_path: Path) -> None:
    import tarfile

    pytest.importorskip("build", reason="needs the package `build`")
    pytest.importorskip("pybind11", reason="the build without isolation needs pybind11")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    needed = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix in (".cpp", ".h", ".inc")}
    assert needed <= names
    assert {"setup.py", "pyproject.toml", "LICENSE", "README.md", "kernels/__init__.py"} <= names
