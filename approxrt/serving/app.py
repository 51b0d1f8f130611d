"""The HTTP application: one registry of models, the adapters of several APIs, errors in each one's manner."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from approxrt.errors import ApproxrtError, InputError, TextTooLongError
from approxrt.runtime.model import Model
from approxrt.serving.application import Application
from approxrt.serving.errors import ContextOverflow, RequestError
from approxrt.serving.metrics import Metrics
from approxrt.serving.middleware import Activity, LimitsMiddleware
from approxrt.serving.registry import Registry
from approxrt.serving.routes import cohere, docs, health, hub, kserve, openai, openai_text, tei
from approxrt.serving.settings import Settings
from approxrt.version import __version__

log = logging.getLogger("approxrt.serving")


def create_app(models: Iterable[tuple[str, Model]], settings: Settings | None = None) -> FastAPI:
    """The application for (name, model) pairs. Raises InputError for two of one name."""
    settings = settings or Settings()
    metrics, activity = Metrics(), Activity()
    registry = Registry(models, settings, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        activity.draining = True
        await registry.close()

    # FastAPI's own pages load their scripts from elsewhere.
    app = Application(title="approxrt", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.registry, app.state.metrics, app.state.settings, app.state.activity = (
        registry,
        metrics,
        settings,
        activity,
    )
    app.include(adapter.router for adapter in (docs, health, tei, hub, openai, openai_text, cohere, kserve))
    app.entry = LimitsMiddleware(app.entry, settings, metrics, error_answer, activity)
    if settings.cors_origins:
        # Around the gate: a browser asks without a key first whether it may ask, and reads errors, too.
        app.entry = CORSMiddleware(
            app.entry,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=["retry-after", kserve.HEADER],
        )
    app.add_exception_handler(ApproxrtError, _on_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_failure)
    return app


def error_answer(path: str, error: RequestError) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return (body, headers) of an error in the manner of the API that `path` belongs to."""
    message = str(error)
    content: dict[str, Any]
    if path.endswith("/rerank") and path.startswith(("/v1/", "/v2/")):
        content = {"message": message}
    elif _is_openai(path):
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        content = {"error": {"message": message, "type": kind, "param": error.param, "code": error.code or error.kind}}
    elif path.startswith("/v2"):
        content = {"error": message}
    else:
        content = {"error": message, "error_type": error.kind}
    headers = [(b"content-type", b"application/json")]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return json.dumps(content).encode(), headers


def _is_openai(path: str) -> bool:
    return path.startswith("/v1/") and not path.endswith("/rerank")


def _respond(request: Request, error: RequestError) -> Response:
    body, headers = error_answer(request.url.path, _without_paths(request, error))
    return Response(body, error.status, headers={k.decode(): v.decode() for k, v in headers})


def _without_paths(request: Request, error: RequestError) -> RequestError:
    """Put models' names where messages name their folders, which are nobody's business but the server's."""
    text = str(error)
    for served in request.app.state.registry:
        path = served.model.path
        # Quoted, as messages have it: a folder that is called "a" is no part of every word with that letter.
        text = text.replace(repr(os.fspath(path)), repr(served.name)).replace(str(path.resolve()), served.name)
    error.args = (text,)
    return error


async def _on_error(request: Request, error: Exception) -> Response:
    """An error of approxrt: what the request asked for cannot be done."""
    if isinstance(error, RequestError):
        return _respond(request, error)
    if isinstance(error, TextTooLongError) and _is_openai(request.url.path):
        return _respond(request, ContextOverflow(str(error)))
    known = _error(413 if isinstance(error, TextTooLongError) else 400 if isinstance(error, InputError) else 500, error)
    if known.status == 500:
        log.error("request failed", exc_info=error)
    return _respond(request, known)


async def _on_invalid(request: Request, error: Exception) -> Response:
    """A body that does not fit the route: every fault with its place."""
    assert isinstance(error, RequestValidationError)
    errors = error.errors()[:8]
    faults = [f"{'.'.join(str(part) for part in e['loc'][1:]) or 'body'}: {e['msg']}" for e in errors]
    answer = _error(400 if _is_openai(request.url.path) else 422, "; ".join(dict.fromkeys(faults)))
    answer.param = next((str(e["loc"][1]) for e in errors if len(e["loc"]) > 1), None)
    return _respond(request, answer)


async def _on_http(request: Request, error: Exception) -> Response:
    """No such route, or not with this method."""
    assert isinstance(error, HTTPException)
    response = _respond(request, _error(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


async def _on_failure(request: Request, error: Exception) -> Response:
    """A defect of ours: it goes to the log, not to the client."""
    log.error("request failed", exc_info=error)
    return _respond(request, _error(500, "internal error; the server's log has it"))


def _error(status: int, message: object) -> RequestError:
    error = RequestError(str(message))
    error.status = status
    error.kind = {404: "NotFound", 405: "NotFound", 500: "Backend"}.get(status, "Validation")
    return error
