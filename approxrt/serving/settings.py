"""Hold what a server is started with."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from approxrt.errors import InputError


@dataclass(frozen=True)
class Settings:
    """Limits of a server; every one of them has an answer that names it.

    max_batch_tokens   tokens that one forward pass takes, at most (a longer text is a pass of its own)
    wait_ms            how long a text waits for others to share a pass with while the engine is idle
    max_queue          texts that wait for the engine; more are answered with 429
    timeout_s          until a request that still waits is answered with 503
    max_sequences      texts that are generated side by side
    max_inputs         texts of one request
    max_body_bytes     of one request
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
    max_body_bytes: int = 8_000_000
    api_key: str | None = None
    drain_s: float = 30.0
    cors_origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        least = {"max_batch_tokens": 1, "max_queue": 1, "max_sequences": 1, "max_inputs": 1, "max_body_bytes": 1000}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        for name in ("wait_ms", "timeout_s", "drain_s"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} is {value}; it must be a number of at least 0")
        if self.timeout_s == 0:
            raise InputError("timeout_s is 0; every request would fail: give some seconds")
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
