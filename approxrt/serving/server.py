"""Running the application: a socket of our own, signals, logs."""

from __future__ import annotations

import contextlib
import errno
import gc
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType

from fastapi import FastAPI
from uvicorn import Config, Server

from approxrt.errors import InputError
from approxrt.memory import keep_little
from approxrt.serving.middleware import JsonLines
from approxrt.serving.protocol import limited_protocol

log = logging.getLogger("approxrt.serving")

BACKLOG = 2048
DRAIN_SHARE = 0.9  # of the time to stop: for requests, before those that are left are cancelled
# Heaps of the C library for all threads, and bytes of blocks that stay out of them: bodies of megabytes are read,
# tokenised and answered, and what they took should not stay. The engine does not allocate while it runs.
ARENAS, MAPPED_BYTES, KEPT_BYTES = 2, 1 << 20, 8 << 20
GC_OBJECTS = 20_000  # new ones between collections; a request makes some dozens that end with it


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises InputError for an address that cannot be had."""
    if not 0 <= port <= 65535:
        raise InputError(f"port is {port}; it must be between 0 and 65535 (0 takes a free one)")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InputError(f"host {host!r} is not an address of this machine: {error}") from None
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
        # At once: until somebody listens, another server could bind the same port.
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} of {host} is in use: stop what listens there, or give another --port"
            ) from None
        raise InputError(f"{host} port {port} cannot be listened on: {error.strerror}") from None
    return bound


def hosts_for(host: str, api_key: str | None, allowed: Sequence[str]) -> tuple[str, ...]:
    """Return the names that requests may be addressed to: those of the options, and the one that is listened on.

    Any, on a loopback address with a key: a page of another site can neither know the key nor make others reach it.
    """
    with contextlib.suppress(ValueError):
        if api_key is not None and ipaddress.ip_address(host).is_loopback:
            return ("*",)
    return (*allowed, host) if host else tuple(allowed)


class _Server(Server):
    """A server that says that it is not ready once it is told to stop, answers what it has accepted, and ends.

    It listens until then, so that `/health` can say so. Whatever a request does, `drain_s` after the signal the process
    is gone: a thread ends it, or, where no Python code runs any more, the system's alarm.
    """

    def __init__(self, app: FastAPI, config: Config, ready: Callable[[], None] | None) -> None:
        super().__init__(config)
        self.app, self.ready, self.patience = app, ready, math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.ready is not None:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second signal ends at once."""
        activity = self.app.state.activity
        if activity.draining:
            super().handle_exit(sig, frame)
            return
        self._captured_signals.append(sig)
        activity.draining = True
        self.patience = time.monotonic() + DRAIN_SHARE * self.app.state.settings.drain_s
        _end_after(self.app.state.settings.drain_s)

    async def on_tick(self, counter: int) -> bool:
        """Tell whether it is time to stop."""
        activity = self.app.state.activity
        if activity.draining and (not activity.active or time.monotonic() > self.patience):
            return True
        return await super().on_tick(counter)


def _end_after(seconds: float) -> None:
    """End the process after so long, if it is still there: what it does then does not end by itself."""

    def end() -> None:
        time.sleep(seconds)
        log.error("the server did not stop within %g s of the signal: ending it with what is under way", seconds)
        os._exit(1)

    threading.Thread(target=end, name="approxrt-drain", daemon=True).start()
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(math.ceil(seconds) + 1)


def run(app: FastAPI, listening: socket.socket, ready: Callable[[], None] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; what was accepted by then is answered within the settings' `drain_s`.

    ready   called once requests are answered
    """
    config = Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,  # what was accepted has been answered by then
        lifespan="on",
        http=limited_protocol(app.state.settings),
        ws="none",
    )
    keep_little(ARENAS, MAPPED_BYTES, KEPT_BYTES)
    # What is loaded by now stays: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_OBJECTS, 20, 20)
    _Server(app, config, ready).run(sockets=[listening])


def configure_logs(level: str, form: str) -> None:
    """Everything to standard error: `form` is "json" (an object a line) or "text"."""
    handler = logging.StreamHandler(sys.stderr)
    if form == "json":
        handler.setFormatter(JsonLines())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
