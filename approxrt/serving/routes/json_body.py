"""Read a request's JSON within bounds: what a body holds is counted before anything is made of it.

Eight megabytes of `{},` become hundreds of megabytes of objects, and seconds of the interpreter's lock. So a body's
commas and brackets are counted first, those within strings left out. Large bodies are read by a thread of their own,
one at a time: the event loop goes on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from fastapi import Request
from starlette.requests import ClientDisconnect

from approxrt.serving.errors import ClientLeft, TooLarge
from approxrt.serving.settings import Settings

T = TypeVar("T")

INLINE_BYTES = 16_000  # read on the event loop: in a millisecond
_READER = ThreadPoolExecutor(1, thread_name_prefix="approxrt-json")


async def read_body(request: Request, read: Callable[[bytes], T]) -> T:
    """Return what `read` makes of the request's body. Raises TooLarge, and what `read` raises."""
    try:
        raw = await request.body()
    except ClientDisconnect:
        raise ClientLeft("the client has closed its connection amid its body") from None
    settings: Settings = request.app.state.settings
    if len(raw) <= INLINE_BYTES:
        return read(raw)

    def bounded() -> T:
        check_structure(raw, settings)
        return read(raw)

    return await asyncio.get_running_loop().run_in_executor(_READER, bounded)


def check_structure(raw: bytes, settings: Settings) -> None:
    """Raise TooLarge for JSON of too many values, or of too many lists and objects."""
    most_lists = 4 * settings.max_inputs + 4096
    if raw.count(b",") <= settings.max_values and raw.count(b"{") + raw.count(b"[") <= most_lists:
        return
    # Much of it may stand in texts.
    values, lists = structure(raw)
    if values > settings.max_values:
        raise TooLarge(f"the body has {values} values; the limit is {settings.max_values}: send several requests")
    if lists > most_lists:
        raise TooLarge(f"the body has {lists} lists and objects; the limit is {most_lists}: send several requests")


def structure(raw: bytes) -> tuple[int, int]:
    """Return how many commas, and how many opening brackets and braces, JSON has outside of its strings."""
    data = np.frombuffer(raw, np.uint8)
    quotes = np.flatnonzero(data == ord('"'))
    if quotes.size and b"\\" in raw:
        # A quote behind an odd number of backslashes is a character of its string.
        others = np.where(data == ord("\\"), np.int32(-1), np.arange(len(data), dtype=np.int32))
        last = np.maximum.accumulate(others)
        before = quotes[quotes > 0] - 1
        escaped = np.zeros(len(quotes), bool)
        escaped[quotes > 0] = (before - last[before]) % 2 == 1
        quotes = quotes[~escaped]
    marks = np.zeros(len(data), np.int8)
    marks[quotes] = 1
    outside = np.bitwise_xor.accumulate(marks) == 0
    count = [int(np.count_nonzero(outside & (data == ord(mark)))) for mark in ",{["]
    return count[0], count[1] + count[2]
