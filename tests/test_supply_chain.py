"""What is installed is locked by hashes; the extension is linked so that little of it can be overwritten."""

from __future__ import annotations

import platform
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

from approxrt import _C

try:
    import tomllib
except ImportError:  # Python 3.10
    tomllib = None  # type: ignore[assignment]

LOCKS = {
    "serve.txt": ("serve", "chat"),
    "test.txt": ("test", "compress", "serve", "clients", "chat", "gguf"),
}


def locked(name: str) -> dict[str, list[tuple[str, int]]]:
    """Package -> its locked (version, number of hashes): several where Python versions differ."""
    found: dict[str, list[tuple[str, int]]] = {}
    text = re.sub(r"^#.*\n", "", (ROOT / "requirements" / name).read_text(), flags=re.M).replace("\\\n", "")
    for line in text.splitlines():
        match = re.fullmatch(r"([a-z0-9-]+)==(\S+)(?: ;[^#]*?)?((?:\s+--hash=sha256:[0-9a-f]{64})+)", line.strip())
        assert match, f"{name} has a line that is no locked version: {line[:200]!r}"
        found.setdefault(match[1], []).append((match[2], match[3].count("--hash")))
    return found


def names_of(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9._-]+", r)[0].lower().replace("_", "-") for r in requirements}  # type: ignore[index]


@pytest.mark.skipif(tomllib is None, reason="reads pyproject.toml with tomllib, of Python 3.11")
@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_holds_what_its_extras_name(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = names_of(project["build-system"]["requires"]) | names_of(project["project"]["dependencies"])
    for extra in LOCKS[name]:
        asked |= names_of(project["project"]["optional-dependencies"][extra])
    lock = locked(name)
    assert not asked - set(lock), f"requirements/{name} lacks these: run `make lock`"
    assert all(count for versions in lock.values() for _, count in versions)


def test_the_tests_lock_has_the_versions_that_the_project_pins() -> None:
    lock = locked("test.txt")
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert pinned["torch"]
    for package, version in pinned.items():
        for found, _ in lock.get(package, []):
            assert found.partition("+")[0] == version, f"{package}: run `make lock`"
    # The wheel for CPUs and nothing beside it, by its own version: the other brings gigabytes of CUDA along.
    assert lock["torch"] == [(f"{pinned['torch']}+cpu", 1)]
    assert not [package for package in lock if package.startswith("nvidia")]
    assert "torch" not in locked("serve.txt"), "a server on CPUs needs no torch"


# -- the extension -------------------------------------------------------------

PT_DYNAMIC, PT_GNU_RELRO, PT_GNU_STACK = 2, 0x6474E552, 0x6474E551
DT_FLAGS, DT_FLAGS_1, DF_BIND_NOW, DF_1_NOW = 30, 0x6FFFFFFB, 0x8, 0x1
PF_X = 1


def segments(elf: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(type, flags, content) of a 64-bit little-endian ELF file's program headers."""
    offset, size, count = (struct.unpack_from(f, elf, at)[0] for f, at in (("<Q", 32), ("<H", 54), ("<H", 56)))
    for at in range(offset, offset + count * size, size):
        kind, flags, begin = struct.unpack_from("<IIQ", elf, at)
        yield kind, flags, elf[begin : begin + struct.unpack_from("<Q", elf, at + 32)[0]]


@pytest.mark.skipif(platform.system() != "Linux", reason="RELRO is a matter of ELF files; this is not Linux")
@pytest.mark.skipif(_C.sanitized, reason="a sanitizer build is not hardened")
def test_the_extension_is_hardened() -> None:
    elf = Path(_C.__file__).read_bytes()
    if elf[:6] != b"\x7fELF\x02\x01":
        pytest.skip("the extension is no 64-bit little-endian ELF file, which is what this test reads")
    found = list(segments(elf))
    kinds = [kind for kind, _, _ in found]
    assert PT_GNU_RELRO in kinds, "no RELRO: what calls go through stays writable"
    (dynamic,) = (content for kind, _, content in found if kind == PT_DYNAMIC)
    entries = dict(struct.iter_unpack("<QQ", dynamic))
    assert entries.get(DT_FLAGS, 0) & DF_BIND_NOW or entries.get(DT_FLAGS_1, 0) & DF_1_NOW, "RELRO is only partial"
    (stack,) = (flags for kind, flags, _ in found if kind == PT_GNU_STACK)
    assert not stack & PF_X, "the stack is executable"
    # What the compiler's own checks call: a function that overran its buffer, and one of libc's that would have.
    assert b"\0__stack_chk_fail\0" in elf
    assert re.search(rb"\0__\w+_chk\0", elf.replace(b"\0__stack_chk_fail\0", b"\0"))
