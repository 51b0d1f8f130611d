"""FastAPI behind the gate, with the JSON routes reached by their path alone.

A request passes FastAPI's layers (seven around the routes, two exit stacks and a table of patterns within) in about the
time that a small model takes for a sentence. Routes that read a JSON body and have a fixed path need none of them: they
are looked up by method and path, and errors get the answers that are registered for them. All else, and what a proxy
put under a prefix, goes FastAPI's own way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from approxrt.serving.routes.route import JsonRoute

Handler = Callable[[Request], Awaitable[Response]]


class Application(FastAPI):
    """See the module's text. `entry` is what every HTTP request enters by; gates wrap it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.entry: ASGIApp = self.dispatch
        self._direct: dict[tuple[str, str], tuple[JsonRoute, Handler]] = {}

    def include(self, routers: Iterable[APIRouter]) -> None:
        """Serve their routes."""
        for router in routers:
            self.include_router(router)
            for route in router.routes:
                if isinstance(route, JsonRoute) and route.answer is not None and "{" not in route.path:
                    for method in route.methods or ():
                        self._direct.setdefault((method, route.path), (route, route.answer))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self.entry(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that was let in."""
        found = self._direct.get((scope["method"], scope["path"]))
        if found is None or scope.get("root_path"):
            await super().__call__(scope, receive, send)
            return
        scope["app"], (scope["route"], answer) = self, found
        request = Request(scope, receive, send)
        try:
            response = await answer(request)
        except Exception as error:
            response = await self._handler_of(error)(request, error)
        await response(scope, receive, send)

    def _handler_of(self, error: Exception) -> Callable[[Request, Exception], Awaitable[Response]]:
        for kind in type(error).__mro__:
            if kind in self.exception_handlers:
                handler: Any = self.exception_handlers[kind]
                return handler
        raise error
