"""Let every request pass the gate: host, key, kind of body, limits, metrics, a line in the log."""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from approxrt.serving.errors import Overloaded, RequestError, TooLarge, Unauthorized, Unavailable, WrongHost, WrongKind
from approxrt.serving.fairness import CLIENT
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

MOST_KNOWN = 256
_HOST = re.compile(r"^(\[[^\]]*\]|[^:]*)(?::\d*)?$")  # without its port

log = logging.getLogger("approxrt.serving")


@dataclass
class Activity:
    """Count the requests under way, in all and by client; `draining` once the server was told to stop."""

    active: int = 0
    clients: Counter[str] = field(default_factory=Counter)
    draining: bool = False


class LimitsMiddleware:
    """ASGI middleware; see the module's text."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, answer: Answer, activity: Activity) -> None:
        self.app, self.settings, self.metrics, self.answer = app, settings, metrics, answer
        self.activity = activity
        self._known: set[bytes] = set()  # Host headers that were found to be allowed
        self._hosts = frozenset(host.lower() for host in settings.allowed_hosts)
        # Looking labels up takes longer than counting.
        self._counted: dict[tuple[str, int], tuple[Any, Any]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begin, status, client = time.perf_counter(), 0, (scope.get("client") or ("", 0))[0]
        self.activity.active += 1
        self.activity.clients[client] += 1
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
            if scope["path"] not in OPEN:
                self._check(scope, headers, client)
            CLIENT.set(client)
            limited = _Limited(receive, self.settings.max_body_bytes, headers.get(b"content-length"))
            await self.app(scope, limited, sending)
        except RequestError as error:
            if status:
                raise  # an answer has begun: only the connection's end can say so
            await fail(error)
        finally:
            self.activity.active -= 1
            self.activity.clients[client] -= 1
            if not self.activity.clients[client]:
                del self.activity.clients[client]
            self._account(scope, status or 499, time.perf_counter() - begin)

    def _check(self, scope: Scope, headers: dict[bytes, bytes], client: str) -> None:
        """Raise RequestError for a request that is not let in."""
        if self.activity.draining:
            raise Unavailable("the server is shutting down")
        self._check_host(headers.get(b"host", b""))
        self._check_key(headers)
        self._check_kind(scope, headers)
        most = self.settings.max_client_requests
        if most is not None and self.activity.clients[client] > most:
            raise Overloaded(f"{most} requests of this client are under way, which is the limit: wait for an answer", 1)

    def _check_host(self, given: bytes) -> None:
        """Refuse names that a page may have made to point here (DNS rebinding); addresses in numbers are none."""
        if not given or given in self._known or "*" in self._hosts:
            return
        name = _HOST.sub(r"\1", given.decode("latin-1").strip().lower())
        if name in self._hosts or name == "localhost" or name.endswith(".localhost") or _is_address(name):
            if len(self._known) < MOST_KNOWN:
                self._known.add(given)
            return
        raise WrongHost(
            f"the request is for host {name[:100]!r}, which this server does not answer to: ask by its address, or "
            "start it with --allowed-host NAME"
        )

    def _check_kind(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Refuse bodies that say they are no JSON: a page of another site may send those unasked."""
        empty = headers.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in headers
        if scope["method"] != "POST" or empty:
            return
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json")):
            return
        if kind == b"application/octet-stream" and scope["path"].startswith("/v2/"):
            return  # KServe's binary tensors
        shown = repr(kind.decode("latin-1")[:60]) if kind else "missing"
        raise WrongKind(f"the content-type is {shown}; send application/json")

    def _check_key(self, headers: dict[bytes, bytes]) -> None:
        key = self.settings.api_key
        if key is None:
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


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


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
