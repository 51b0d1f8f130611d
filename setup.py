"""Builds the extension `approxrt._C` with ninja.

Every translation unit of csrc/kernels gets the flags of the instruction set that
it is named after (`FAMILY/avx2.cpp`, `FAMILY/avxvnni.cpp`, ...: `ISA_FLAGS`); all
others are compiled for baseline x86-64, so that importing the extension never executes
an instruction that the CPU lacks. `dispatch.cpp` chooses at run time.

Environment:
  CXX                 the compiler (default: the first of c++, g++, clang++ found)
  APPROXRT_SANITIZE   e.g. "address,undefined" or "thread": a sanitizer build
  APPROXRT_WERROR     1: warnings are errors
  MAX_JOBS            parallel compilations (default: what ninja chooses)
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
IS_X86 = platform.machine().lower() in ("x86_64", "amd64")

_AVX512VNNI = "-mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni"
ISA_FLAGS = {
    "amx": f"{_AVX512VNNI} -mamx-tile -mamx-int8",
    "avx512vnni": _AVX512VNNI,
    "avx512": "-mavx2 -mfma -mf16c -mbmi2 -mavx512f -mavx512bw -mavx512vl -mavx512dq",
    "avxvnni": "-mavx2 -mfma -mf16c -mavxvnni",
    "avx2": "-mavx2 -mfma -mf16c",
}


# What makes a mistake of the engine harder to use: overrun buffers on the stack and in calls of libc end the process,
# and nothing that calls go through can be written after the start.
HARDENED = "-fstack-protector-strong -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2"
HARDENED_LINK = "-Wl,-z,relro,-z,now,-z,noexecstack"


def isa_of(source: Path) -> str | None:
    """The instruction set that a kernel's file is named after, or None for baseline code."""
    return source.stem if source.stem in ISA_FLAGS else None


def find_compiler() -> str:
    """The C++ compiler's command, or an exit that says what is missing."""
    asked = os.environ.get("CXX")
    for name in [asked] if asked else ["c++", "g++", "clang++"]:
        if shutil.which(shlex.split(name)[0]):
            return name
    sys.exit(
        f"approxrt builds C++ kernels and found no compiler ({'CXX=' + asked if asked else 'c++, g++, clang++'}).\n"
        "Install one (Debian: apt-get install g++; Fedora: dnf install gcc-c++; conda: gxx_linux-64), "
        "or set CXX to its path, then try again."
    )


def is_clang(compiler: str) -> bool:
    """Whether the command is clang, by what it says of itself (c++ may be either)."""
    said = subprocess.run([*shlex.split(compiler), "--version"], capture_output=True, text=True, check=False)
    return "clang" in said.stdout


def check_assembly(compiler: str) -> None:
    """Exits when the compiler or its assembler is older than the newest instructions among the kernels."""
    probe = '__asm__("{vex} vpdpbusd %ymm0, %ymm0, %ymm0");'
    command = [*shlex.split(compiler), *ISA_FLAGS["avxvnni"].split(), "-x", "c++", "-c", "-", "-o", os.devnull]
    done = subprocess.run(command, input=probe, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(
            f"{compiler!r} cannot compile AVX-VNNI kernels: approxrt needs GCC 11 with binutils 2.36, clang 12, or "
            f"later (CXX names another). It says:\n{done.stderr}"
        )


def find_ninja() -> str:
    """ninja's path: the PyPI package's binary, else one on PATH."""
    try:
        import ninja

        candidate = Path(ninja.BIN_DIR) / "ninja"
        if candidate.exists():
            return str(candidate)
    except ImportError:
        pass
    found = shutil.which("ninja")
    if found:
        return found
    sys.exit("approxrt's build needs ninja: pip install ninja")


def python_header_missing() -> str | None:
    """The folder where Python.h should be, when it is not there."""
    include = sysconfig.get_paths()["include"]
    return None if (Path(include) / "Python.h").exists() else include


class NinjaBuildExt(build_ext):
    """build_ext that writes a build.ninja and lets ninja compile in parallel."""

    def run(self) -> None:
        # setuptools resets `inplace` while it builds.
        self.runs_from_here = bool(self.inplace or getattr(self, "editable_mode", False))
        super().run()

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        if os.name != "posix":
            sys.exit(f"approxrt's engine builds on Linux and macOS; this is {platform.system()}.")
        missing = python_header_missing()
        if missing:
            sys.exit(f"Python.h is not in {missing}: install Python's headers (Debian: apt-get install python3-dev).")
        compiler, ninja = find_compiler(), find_ninja()
        if IS_X86:
            check_assembly(compiler)
        sanitize = os.environ.get("APPROXRT_SANITIZE", "")
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        # An installation that runs from this tree keeps its objects in it, whoever asks (pip has a folder of its own
        # for each call), where a wheel's build finds them, too: what was compiled once is not compiled again.
        kept = ROOT / "build" / f"temp.{self.plat_name}-{sys.implementation.cache_tag}"  # setuptools' own name for it
        temporary = kept if self.runs_from_here else Path(self.build_temp).resolve()
        build = temporary / ("ninja" + ("-" + sanitize.replace(",", "-") if sanitize else ""))
        build.mkdir(parents=True, exist_ok=True)

        cxx = [
            "-std=c++20", "-O3", "-g1", "-fPIC", "-fvisibility=hidden", "-pthread",
            # Equal results on every path of a kernel: a product and a sum fuse only where the code says so.
            "-ffp-contract=off", "-fno-math-errno",
            "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-ignored-attributes",
            f"-I{ROOT / 'csrc'}",
            f"-isystem{pybind11.get_include()}", f"-isystem{sysconfig.get_paths()['include']}",
            f"-DAPPROXRT_X86={int(IS_X86)}",
            f"-DAPPROXRT_VERSION='\"{self.distribution.get_version()}\"'",
        ]  # fmt: skip
        if not is_clang(compiler):
            # False alarms from GCC 12 inside its own AVX-512 headers.
            cxx += ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]
        if os.environ.get("APPROXRT_WERROR") == "1":
            cxx.append("-Werror")
        link = ["-shared", "-pthread"]
        if not sanitize:  # sanitizers look at the same memory, and closer
            cxx.append(HARDENED)
        if platform.system() == "Linux":
            link.append(HARDENED_LINK)
        if platform.system() == "Darwin":
            link += ["-undefined", "dynamic_lookup"]
        if sanitize:
            flags = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
            cxx += [*flags, "-O1", "-DAPPROXRT_SANITIZED=1"]
            link += flags

        lines = [
            "ninja_required_version = 1.8",
            f"cxx = {compiler}",
            f"flags = {' '.join(cxx)}",
            f"link = {' '.join(link)}",
            "rule compile",
            "  command = $cxx -MMD -MF $out.d $flags $isa -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "  description = CXX $in",
            "rule shared",
            "  command = $cxx $in $link -o $out",
            "  description = LINK $out",
        ]
        objects = []
        for source in sorted((ROOT / "csrc").rglob("*.cpp")):
            isa = isa_of(source)
            if isa and not IS_X86:
                continue
            obj = source.relative_to(ROOT).with_suffix(".o")
            lines.append(f"build {obj}: compile {escape(source)}")
            own = [ISA_FLAGS[isa] if isa else "-march=x86-64"] if IS_X86 else []
            if "bindings" in source.parts:
                # Templates that copy arguments: they take half of the build at -O3 and are no faster by it.
                own.append("-O1")
            lines.append(f"  isa = {' '.join(own)}")
            objects.append(str(obj))
        lines.append(f"build {escape(output)}: shared {' '.join(objects)}")
        lines.append(f"default {escape(output)}\n")
        (build / "build.ninja").write_text("\n".join(lines))

        command = [ninja, "-C", str(build)]
        if os.environ.get("MAX_JOBS"):
            command += ["-j", os.environ["MAX_JOBS"]]
        result = subprocess.run(command, check=False)
        if result.returncode:
            sys.exit(f"approxrt: compilation with {compiler!r} failed; the compiler's message is above.")


def escape(path: Path) -> str:
    """A path as build.ninja wants it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    ext_modules=[Extension("approxrt._C", sources=[])],
    cmdclass={"build_ext": NinjaBuildExt},
)
