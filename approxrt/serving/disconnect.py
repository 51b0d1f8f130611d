"""Work whose client may leave: cancelled when nobody is there to read its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from approxrt.serving.errors import ClientLeft

T = TypeVar("T")
SHORT = 1000  # bytes
PATIENCE_S = 0.05  # work that is done sooner is not worth watching over


async def while_connected(request: Request, work: Coroutine[Any, Any, T], crowded: bool = True) -> T:
    """The result of `work`. Raises ClientLeft, and cancels the work, when the client closes its connection first.

    Without a crowd a short request's work begins at once, and nothing would be saved.
    """
    if not crowded and int(request.headers.get("content-length", SHORT)) < SHORT:
        return await work
    task = asyncio.ensure_future(work)
    leaving: asyncio.Task[None] | None = None
    try:
        done, _ = await asyncio.wait({task}, timeout=PATIENCE_S)
        if not done:
            leaving = asyncio.ensure_future(_disconnected(request))
            await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientLeft("the client has closed its connection")
        return task.result()
    finally:
        task.cancel()
        if leaving is not None:
            leaving.cancel()


async def _disconnected(request: Request) -> None:
    # The body has been read: the next message is the end of the connection.
    while (await request.receive())["type"] != "http.disconnect":
        pass
