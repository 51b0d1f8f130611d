"""Running the application: a socket of our own, signals, logs."""

from __future__ import annotations

import errno
import gc
import logging
import math
import socket
import sys
from collections.abc import Callable
from types import FrameType

from fastapi import FastAPI
from uvicorn import Config, Server

from approxrt.errors import InputError
from approxrt.serving.middleware import JsonLines

GC_OBJECTS = 20_000  # new ones between collections; a request makes some dozens that end with it


def bind(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one. Raises InputError for an address that cannot be had."""
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
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"port {port} of {host} is in use: stop what listens there, or give another --port"
            ) from None
        raise InputError(f"{host} port {port} cannot be listened on: {error.strerror}") from None
    return bound


class _Server(Server):
    """Says that it is not ready as soon as it is told to stop."""

    def __init__(self, app: FastAPI, config: Config, ready: Callable[[], None] | None) -> None:
        super().__init__(config)
        self.app, self.ready = app, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.ready is not None:
            self.ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.app.state.draining = True
        super().handle_exit(sig, frame)


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
        timeout_graceful_shutdown=max(1, math.ceil(app.state.settings.drain_s)),
        lifespan="on",
    )
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
