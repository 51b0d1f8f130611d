"""Let every request pass the gate: the API key, the limit on bodies, metrics, a line in the log."""

from __future__ import annotations

import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from approxrt.serving.errors import RequestError, TooLarge, Unauthorized
from approxrt.serving.metrics import Metrics
from approxrt.serving.settings import Settings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
# (path, error) -> (body, headers) in the manner of the route's own API
Answer = Callable[[str, RequestError], tuple[bytes, list[tuple[bytes, bytes]]]]

OPEN = ("/health", "/live", "/v2/health/live", "/v2/health/ready")  # asked by orchestrators, which have no key

log = logging.getLogger("approxrt.serving")


class LimitsMiddleware:
    """ASGI middleware; see the module's text."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, answer: Answer) -> None:
        self.app, self.settings, self.metrics, self.answer = app, settings, metrics, answer
        # Looking labels up takes longer than counting.
        self._counted: dict[tuple[str, int], tuple[Any, Any]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status = time.perf_counter(), 0
        limited: _Limited | None = None

        async def sending(message: Message) -> None:
            nonlocal status
            if limited is not None and limited.error is not None:
                # Whatever the framework makes of a body that it could not read: the reason is known.
                if not status:
                    await fail(limited.error)
                return
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        async def fail(error: RequestError) -> None:
            nonlocal status
            status = error.status
            body, extra = self.answer(scope["path"], error)
            await send({"type": "http.response.start", "status": status, "headers": extra})
            await send({"type": "http.response.body", "body": body})

        try:
            headers = dict(scope["headers"])
            self._check_key(scope["path"], headers)
            limited = _Limited(receive, self.settings.max_body_bytes, headers.get(b"content-length"))
            await self.app(scope, limited, sending)
        except RequestError as error:
            if status:
                raise  # an answer has begun: only the connection's end can say so
            await fail(error)
        finally:
            self._account(scope, status or 499, time.perf_counter() - begin)

    def _check_key(self, path: str, headers: dict[bytes, bytes]) -> None:
        key = self.settings.api_key
        if key is None or path in OPEN:
            return
        given = headers.get(b"x-api-key", b"")
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            given = token.strip()
        if not hmac.compare_digest(given, key.encode()):
            raise Unauthorized("the API key is missing or wrong: send Authorization: Bearer KEY")

    def _account(self, scope: Scope, status: int, seconds: float) -> None:
        # The route's pattern, not the path: names of models that nobody serves would grow without end.
        route = getattr(scope.get("route"), "path", None) or "other"
        counted = self._counted.get((route, status))
        if counted is None:
            counted = self.metrics.requests.labels(route, str(status)), self.metrics.seconds.labels(route)
            self._counted[route, status] = counted
        counted[0].inc()
        counted[1].observe(seconds)
        if log.isEnabledFor(logging.INFO):
            client = scope.get("client") or ("", 0)
            fields = {"method": scope["method"], "path": scope["path"], "status": status}
            log.info("request", extra={"fields": {**fields, "ms": round(seconds * 1e3, 2), "client": client[0]}})


class _Limited:
    """A body that is read no further than its limit."""

    def __init__(self, receive: Receive, limit: int, announced: bytes | None) -> None:
        self.receive, self.limit, self.seen = receive, limit, 0
        self.error: TooLarge | None = None
        if announced is not None and announced.isdigit() and int(announced) > limit:
            raise self._too_large(f"{int(announced)}")

    async def __call__(self) -> Message:
        message = await self.receive()
        if message["type"] == "http.request":
            self.seen += len(message.get("body", b""))
            if self.seen > self.limit:
                self.error = self._too_large(f"over {self.limit}")
                raise self.error
        return message

    def _too_large(self, size: str) -> TooLarge:
        return TooLarge(f"the body has {size} bytes; the limit is {self.limit}: send less at a time")


class JsonLines(logging.Formatter):
    """Log records as JSON objects, one a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return json.dumps(entry)
