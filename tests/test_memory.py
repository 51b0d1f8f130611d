"""What the C library holds back after arrays went, and in how many heaps threads allocate."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

if platform.libc_ver()[0] != "glibc":
    pytest.skip("only glibc keeps memory that way", allow_module_level=True)

GAPS = """
from pathlib import Path
from approxrt.memory import release_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

arrays = [bytearray(60_000) for _ in range(4000)]  # too small for maps of their own: 240 MB of the heap
kept = arrays[::100]
del arrays
before = resident()
release_memory()
print(before - resident())
"""

HEAPS = """
import ctypes, sys, threading
from approxrt.memory import keep_little

if int(sys.argv[1]):
    keep_little(2, 1 << 20, 8 << 20)
ready, done = threading.Barrier(9), threading.Event()

def allocate():
    held = [bytes(5000) for _ in range(100)]
    ready.wait()
    done.wait()

threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
ready.wait()
ctypes.CDLL(None).malloc_stats()
done.set()
"""

# A block of 20 MB is freed: glibc then takes the next from its heap, where a small one behind it keeps it.
PINNED = """
import ctypes, sys
from pathlib import Path
from approxrt.memory import keep_little

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if int(sys.argv[1]):
    keep_little(2, 1 << 20, 8 << 20)
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
libc.free(libc.malloc(20 << 20))
before, small = resident(), []
large = libc.malloc(20 << 20)
ctypes.memset(large, 1, 20 << 20)
small.append(libc.malloc(1000))
libc.free(large)
print(resident() - before)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)


def test_gaps_between_arrays_are_given_back() -> None:
    assert int(run(GAPS).stdout) > 150e6


def test_threads_share_heaps() -> None:
    assert run(HEAPS, "0").stderr.count("Arena ") > 3
    assert run(HEAPS, "1").stderr.count("Arena ") <= 2


def test_large_blocks_do_not_stay() -> None:
    assert int(run(PINNED, "0").stdout) > 15e6
    assert int(run(PINNED, "1").stdout) < 5e6
