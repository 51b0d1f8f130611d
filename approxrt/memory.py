"""Ask the C library for its free memory, where it keeps what programs give back (glibc does; others are left alone)."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_ARENA_MAX = -8  # malloc.h: M_ARENA_MAX


def release_memory() -> None:
    """Give memory that was freed back to the system.

    glibc keeps what lies between arrays that are alive: of a model of 110 M parameters, two gigabytes after a few steps
    whose arrays differ in size.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def limit_arenas(count: int) -> None:
    """Let threads that begin to allocate from now on share so many of the C library's heaps.

    glibc has up to eight a core, and each keeps what its largest moment took.
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, count)
