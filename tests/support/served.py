"""A real server on a loopback socket with three small models, for tests of its routes with real clients."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from families import build_checkpoint

import approxrt
from approxrt.conversion import convert
from approxrt.runtime.model import Model


@dataclass
class Address:
    host: str
    port: int

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, raw: bytes | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """(status, parsed JSON or text, headers)."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=30)
        try:
            data = raw if raw is not None else None if body is None else json.dumps(body).encode()
            connection.request(method, path, data, {"content-type": "application/json", **(headers or {})})
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        kind = response.getheader("content-type") or ""
        return response.status, json.loads(content) if "json" in kind else content, dict(response.getheaders())


def build_models(folder: Path) -> dict[str, Path]:
    """Artifacts: a classifier of texts, a regressor of pairs, an embedder."""
    kinds: dict[str, dict[str, Any]] = {
        "classifier": {"num_labels": 3},
        "reranker": {"num_labels": 1, "problem_type": "regression"},
        "embedder": {"plain": True, "pooling": "mean"},
    }
    found = {}
    for seed, (name, options) in enumerate(kinds.items()):
        checkpoint = build_checkpoint("bert", folder / f"{name}-checkpoint", positions=64, seed=seed, **options)
        found[name] = Path(convert(checkpoint, folder / name))
    return found


def load_models(paths: dict[str, Path]) -> dict[str, Model]:
    return {name: approxrt.load(path, device="cpu", threads=1) for name, path in paths.items()}


@contextmanager
def running(models: dict[str, Model], **settings: Any) -> Iterator[Address]:
    """The server in a thread of this process, stopped at the end."""
    import uvicorn

    from approxrt.serving.app import create_app
    from approxrt.serving.protocol import limited_protocol
    from approxrt.serving.server import bind
    from approxrt.serving.settings import Settings

    app = create_app(models.items(), Settings(**settings))
    listening = bind("127.0.0.1", 0)
    http = limited_protocol(app.state.settings)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", http=http, ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    started = threading.Event()
    original = server.startup

    async def startup(sockets: Any = None) -> None:
        await original(sockets)
        started.set()

    server.startup = startup  # type: ignore[method-assign]
    thread.start()
    assert started.wait(30)
    try:
        yield Address("127.0.0.1", listening.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def start(*arguments: str) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """`approxrt serve` in a process of its own: (process, what it says once it answers)."""
    command = [sys.executable, "-c", "from approxrt.cli.main import main; main()", "serve", "--json", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--threads", "1", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    about = ""
    while not about.rstrip().endswith("}") or about.count("{") != about.count("}"):
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        about += line
    return process, json.loads(about)
