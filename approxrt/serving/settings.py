"""Hold what a server is started with."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from approxrt.errors import InputError

LEAST = {
    "max_batch_tokens": 1,
    "max_queue": 1,
    "max_sequences": 1,
    "max_inputs": 1,
    "max_characters": 1,
    "max_request_tokens": 1,
    "max_values": 1,
    "max_stops": 1,
    "max_body_bytes": 1000,
    "max_header_bytes": 1000,
    "max_pipelined": 1,
    "max_connections": 1,
    "max_client_requests": 1,
}


@dataclass(frozen=True)
class Settings:
    """Limits of a server; every one of them has an answer that names it.

    max_batch_tokens   tokens that one forward pass takes, at most (a longer text is a pass of its own)
    wait_ms            how long a text waits for others to share a pass with while the engine is idle
    max_queue          texts that wait for the engine; more are answered with 429
    timeout_s          until a request that still waits is answered with 503
    max_sequences      texts that are generated side by side
    max_inputs         texts of one request
    max_characters     of one text, before it is tokenised (and cut, where that is asked for)
    max_request_tokens tokens of one request's texts together
    max_values         numbers, texts and other values in one request's JSON
    max_stops          strings that may end one request's text, of up to 1000 characters each
    max_body_bytes     of one request
    max_header_bytes   of one request's head: its path and headers
    max_pipelined      requests of one connection that are read before their answers are
    max_connections    at once; less where the process may not open as many files
    max_client_requests  of one client (an address) at once; None: any number
    header_s           until a connection must have sent a whole head
    body_s             until a body must have ended, or its answer be read
    allowed_hosts      names that requests may be addressed to (the Host header), beside localhost and addresses in
                       numbers; * for any
    api_key            what clients must send (Authorization: Bearer KEY, or X-Api-Key); None: nothing
    cors_origins       origins whose pages may ask (https://example.org, or * for all); none: browsers' pages may not
    drain_s            how long a server that is told to stop finishes what it has accepted
    """

    max_batch_tokens: int = 4096
    wait_ms: float = 0.0
    max_queue: int = 4096
    timeout_s: float = 60.0
    max_sequences: int = 8
    max_inputs: int = 1024
    max_characters: int = 1_000_000
    max_request_tokens: int = 1_000_000
    max_values: int = 262_144
    max_stops: int = 64
    max_body_bytes: int = 8_000_000
    max_header_bytes: int = 32_768
    max_pipelined: int = 16
    max_connections: int = 4096
    max_client_requests: int | None = None
    header_s: float = 10.0
    body_s: float = 60.0
    allowed_hosts: tuple[str, ...] = ()
    api_key: str | None = None
    drain_s: float = 30.0
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, low in LEAST.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise InputError(f"{name} is {value}; it must be at least {low}")
        for name in ("wait_ms", "timeout_s", "drain_s", "header_s", "body_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}; it must be a number of at least 0")
        for name in ("timeout_s", "header_s", "body_s"):
            if getattr(self, name) == 0:
                raise InputError(f"{name} is 0; every request would fail: give some seconds")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise InputError("the API key must be printable ASCII, which headers can carry, and not empty")
        for origin in self.cors_origins:
            if origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/?#\s]+", origin):
                raise InputError(
                    f"the origin {origin!r} is not one: write * for all, or a scheme and a host without a path, "
                    "such as https://example.org or http://localhost:3000"
                )

    def public(self) -> dict[str, object]:
        """All of it that anyone may read."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "api_key"}
