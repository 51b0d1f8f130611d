"""Ask the C library for its free memory, where it keeps what programs give back (glibc does; others are left alone)."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h: M_TRIM_THRESHOLD, ...


def release_memory() -> None:
    """Give memory that was freed back to the system.

    glibc keeps what lies between arrays that are alive: of a model of 110 M parameters, two gigabytes after a few steps
    whose arrays differ in size.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def keep_little(arenas: int, mapped: int, kept: int) -> None:
    """Let the C library keep little of what is freed from now on.

    glibc has a heap for each thread, up to eight a core, which keeps what its largest moment took; and once a large
    block was freed, the next of its size comes from a heap, too, where small ones that outlive it pin it down.

    arenas   heaps that new threads share
    mapped   bytes from which a block is a map of its own, which goes when it is freed
    kept     free bytes at a heap's end from which they are given back
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_ARENA_MAX, arenas), (_MMAP_THRESHOLD, mapped), (_TRIM_THRESHOLD, kept)):
            mallopt(parameter, value)
