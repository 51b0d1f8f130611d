"""uvicorn's HTTP/1.1 connections with bounds: on headers, pipelined requests, time, and the number of connections.

httptools parses without any limit of its own. Here a connection that sends an endless head, or none, or a body that
does not end, or that does not read its answers, is ended; where there are too many, those that wait for a head make
room for new ones, so that `/health` is answered whoever holds connections open.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from approxrt.serving.settings import Settings

SWEEP_S = 0.5
CHUNK = 1 << 18  # what asyncio reads at once
RESERVED_FILES = 96  # descriptors that are not for connections: files, sockets that listen, what libraries open


def most_connections(settings: Settings) -> int:
    """Return how many connections there may be: as asked for, and less than the process may open files."""
    try:
        import resource

        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except ImportError:  # no POSIX
        return settings.max_connections
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    return max(1, min(settings.max_connections, files - RESERVED_FILES))


class LimitedProtocol(HttpToolsProtocol):
    """One connection; `limited_protocol` binds it to a server's settings."""

    settings = Settings()
    most = 1
    waiting: ClassVar[dict[LimitedProtocol, None]] = {}  # for a head, those that have waited longest first

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.head_since: float | None = None  # while one is awaited or has begun
        self.body_since: float | None = None  # while one is read
        self.unread_since: float | None = None  # while the client does not read its answer
        self.fed = 0  # bytes since a head has begun that has not ended
        self.discarded = 0  # bytes of a body whose request is answered
        self.fault: tuple[int, str] | None = None

    # -- the connection ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room where there is none, and wait for a head."""
        super().connection_made(transport)
        self.head_since = time.monotonic()
        if len(self.connections) > self.most:
            oldest = next((c for c in self.waiting if c.is_waiting), None)
            if oldest is not None:
                del self.waiting[oldest]
                oldest.transport.abort()
            else:
                self.refuse(503, f"{self.most} connections are open, which is the limit: try again later")
        self.waiting[self] = None
        _sweep_from_now_on(self.server_state, self.loop)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.waiting.pop(self, None)
        super().connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Tell whether no request is under way: nothing is lost but a head that has not ended."""
        return self.body_since is None and (self.cycle is None or bool(self.cycle.response_complete))

    def sweep(self, now: float) -> None:
        """End what takes too long."""
        settings = self.settings
        if self.head_since is not None and now - self.head_since > settings.header_s and self.is_waiting:
            self.transport.abort()  # who has not asked is not answered
        elif self.body_since is not None and now - self.body_since > settings.body_s:
            self.refuse(408, f"the body did not end within {settings.body_s:g} s")
        elif self.unread_since is not None and now - self.unread_since > settings.body_s:
            self.transport.abort()

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error, where no answer is under way, and close."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            body = json.dumps({"error": message, "error_type": "Validation"}).encode()
            head = [STATUS_LINE[status], b"content-type: application/json\r\nconnection: close\r\ncontent-length: "]
            self.transport.write(b"".join([*head, str(len(body)).encode(), b"\r\n\r\n", body]))
            self.transport.close()
        else:
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse, within the limit on heads."""
        if self.transport.is_closing():
            return
        if self.head_since is None and self.body_since is None:
            self.head_since = time.monotonic()
        if self.body_since is not None and self.cycle is not None and self.cycle.response_complete:
            self.discarded += len(data)
            if self.discarded > 2 * self.settings.max_body_bytes:
                self.transport.abort()
                return
        super().data_received(data)
        if self.transport.is_closing() or self.parser is None:
            return
        if self.head_since is not None and self.body_since is None:
            self.fed += len(data)
            # What was fed may begin with the end of the message before.
            self._check_head(self.fed - CHUNK)
        if self.fault is not None:
            self.refuse(*self.fault)

    def pause_writing(self) -> None:
        """Begin to count how long the client does not read."""
        self.unread_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """The client reads on."""
        self.unread_since = None
        super().resume_writing()

    # -- the parser's calls ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a head."""
        self.fed = 0
        if self.head_since is None:
            self.head_since = time.monotonic()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Begin the request, unless the head or the queue of pipelined ones is over a limit."""
        self.head_since, self.fed, self.discarded = None, 0, 0
        self._check_head(len(self.url) + sum([len(name) + len(value) + 4 for name, value in self.headers]))
        if len(self.pipeline) >= self.settings.max_pipelined:
            most = self.settings.max_pipelined
            self.fault = (429, f"over {most} requests were sent before their answers were read: wait for answers")
        if self.fault is None:
            self.body_since = time.monotonic()
            self.waiting.pop(self, None)
            super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Wait for the next head."""
        self.waiting[self] = None
        super().on_response_complete()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body."""
        if self.fault is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body."""
        self.body_since = None
        if self.fault is None:
            super().on_message_complete()

    def _check_head(self, size: int) -> None:
        most = self.settings.max_header_bytes
        if size > most and self.fault is None:
            self.fault = (431, f"the head of the request has over {most} bytes, which is the limit: send less")


def limited_protocol(settings: Settings) -> type[LimitedProtocol]:
    """Return the class of a server's connections."""

    class ServerProtocol(LimitedProtocol):
        most = most_connections(settings)

    ServerProtocol.settings = settings
    ServerProtocol.waiting = {}
    return ServerProtocol


def _sweep_from_now_on(state: ServerState, loop: asyncio.AbstractEventLoop) -> None:
    """Look at all connections now and then, as long as there are any: one timer for all of them."""
    if getattr(state, "sweeping", False):
        return
    state.sweeping = True  # type: ignore[attr-defined]

    def sweep() -> None:
        now = time.monotonic()
        for connection in list(state.connections):
            if isinstance(connection, LimitedProtocol):
                connection.sweep(now)
        if state.connections:
            loop.call_later(SWEEP_S, sweep)
        else:
            state.sweeping = False  # type: ignore[attr-defined]

    loop.call_later(SWEEP_S, sweep)
