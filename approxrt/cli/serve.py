"""`approxrt serve`: artifacts over HTTP."""

from __future__ import annotations

import importlib.util
from typing import Any

import typer

from approxrt.cli import output
from approxrt.errors import InputError, MissingDependencyError

LEVELS = ("debug", "info", "warning", "error")


def command(
    artifacts: list[str] = typer.Argument(..., help="Folders of artifacts, or NAME=FOLDER."),
    host: str = typer.Option("127.0.0.1", "--host", help="Address to listen on; 0.0.0.0 for all of this machine's."),
    port: int = typer.Option(8080, "--port", help="Port to listen on; 0 takes a free one."),
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    mmap: bool = typer.Option(
        False,
        "--mmap",
        help="Read embedding tables from the files while serving: less memory for many processes, but writing to the "
        "files changes answers or kills the server.",
    ),
    api_key: str | None = typer.Option(
        None, "--api-key", envvar="APPROXRT_API_KEY", show_envvar=True, help="What clients must send."
    ),
    max_batch_tokens: int = typer.Option(4096, "--max-batch-tokens", help="Tokens a forward pass."),
    wait_ms: float = typer.Option(0.0, "--wait-ms", help="How long an idle engine waits for texts to share a pass."),
    max_queue: int = typer.Option(4096, "--max-queue", help="Texts that may wait; more are answered with 429."),
    timeout: float = typer.Option(60.0, "--timeout", help="Seconds until a request that still waits gets 503."),
    max_sequences: int = typer.Option(8, "--max-sequences", help="Texts that are generated side by side."),
    max_inputs: int = typer.Option(1024, "--max-inputs", help="Texts of one request."),
    max_characters: int = typer.Option(1_000_000, "--max-characters", help="Characters of one text."),
    max_request_tokens: int = typer.Option(1_000_000, "--max-request-tokens", help="Tokens of one request."),
    max_values: int = typer.Option(262_144, "--max-values", help="Numbers and texts in one request's JSON."),
    max_stops: int = typer.Option(64, "--max-stops", help="Stop strings of one request."),
    max_body: int = typer.Option(8_000_000, "--max-body", help="Bytes of one request."),
    max_header: int = typer.Option(32_768, "--max-header", help="Bytes of one request's path and headers."),
    max_pipelined: int = typer.Option(16, "--max-pipelined", help="Requests of a connection before their answers."),
    max_connections: int = typer.Option(4096, "--max-connections", help="Connections at once."),
    max_client_requests: int | None = typer.Option(
        None, "--max-client-requests", help="Requests of one address at once. Default: any number."
    ),
    header_timeout: float = typer.Option(10.0, "--header-timeout", help="Seconds a connection has for a whole head."),
    body_timeout: float = typer.Option(60.0, "--body-timeout", help="Seconds for a body, and for reading an answer."),
    allowed_host: list[str] = typer.Option(
        [],
        "--allowed-host",
        help="A name that clients may ask for, or * for any; may be repeated.",
    ),
    cors_origin: list[str] = typer.Option(
        [], "--cors-origin", help="An origin whose pages may ask, or * for all; may be repeated. Default: none."
    ),
    drain: float = typer.Option(30.0, "--drain", help="Seconds for what was accepted, once told to stop."),
    log_format: str = typer.Option("json", "--log-format", help="json (an object a line) or text."),
    log_level: str = typer.Option("info", "--log-level", help="debug, info (a line a request), warning or error."),
    json: bool = output.JSON_OPTION,
) -> None:
    """Serve artifacts over HTTP: routes of text-embeddings-inference, OpenAI, cohere and KServe v2."""
    if importlib.util.find_spec("fastapi") is None or importlib.util.find_spec("uvicorn") is None:
        raise MissingDependencyError("fastapi", "serve", "approxrt serve")
    if log_level not in LEVELS:
        raise InputError(f"--log-level is {log_level!r}; it must be one of {', '.join(LEVELS)}")
    if log_format not in ("json", "text"):
        raise InputError(f"--log-format is {log_format!r}; it must be json or text")
    from approxrt.serving.app import create_app
    from approxrt.serving.registry import open_models
    from approxrt.serving.server import bind, configure_logs, hosts_for, run
    from approxrt.serving.settings import Settings

    settings = Settings(
        max_batch_tokens=max_batch_tokens,
        wait_ms=wait_ms,
        max_queue=max_queue,
        timeout_s=timeout,
        max_sequences=max_sequences,
        max_inputs=max_inputs,
        max_characters=max_characters,
        max_request_tokens=max_request_tokens,
        max_values=max_values,
        max_stops=max_stops,
        max_body_bytes=max_body,
        max_header_bytes=max_header,
        max_pipelined=max_pipelined,
        max_connections=max_connections,
        max_client_requests=max_client_requests,
        header_s=header_timeout,
        body_s=body_timeout,
        allowed_hosts=hosts_for(host, api_key, allowed_host),
        api_key=api_key,
        drain_s=drain,
        cors_origins=tuple(cors_origin),
    )
    # A port that cannot be had is known before models take their time to load.
    listening = bind(host, port)
    address, taken = listening.getsockname()[:2]
    url = f"http://{f'[{address}]' if ':' in address else address}:{taken}"
    models = open_models(artifacts, threads, mmap)
    app = create_app(models, settings)
    configure_logs(log_level, log_format)
    about: dict[str, Any] = {"url": url, "models": [name for name, _ in models], "settings": settings.public()}

    def ready() -> None:
        if json:
            output.emit_json(about)
        else:
            names = ", ".join(about["models"])
            output.stdout.print(f"serving {names} at {url} (docs at {url}/docs)", markup=False, highlight=False)

    run(app, listening, ready)
