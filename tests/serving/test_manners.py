"""How a server begins and ends: one a port, not ready while it drains, gone when its time is over; its metrics."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from decoders import build_decoder
from served import Address, build_models, start

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

import approxrt
from approxrt.errors import InputError
from approxrt.serving.metrics import Metrics
from approxrt.serving.server import bind, hosts_for

DOCS = Path(__file__).resolve().parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    writer = approxrt.convert(build_decoder("llama", folder / "c", positions=4096), folder / "writer")
    return {**build_models(folder), "writer": Path(writer)}


def test_two_servers_on_one_port(paths: dict[str, Path]) -> None:
    """The second is told so before it loads anything, though the first has not answered yet."""
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is in use"):
            bind("127.0.0.1", port)
        command = [sys.executable, "-m", "approxrt.cli.main", "serve", str(paths["classifier"]), "--port", str(port)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"port {port} of 127.0.0.1 is in use" in done.stderr


def test_it_is_not_ready_while_it_drains(paths: dict[str, Path]) -> None:
    """A text that was begun is finished; whoever asks meanwhile is told that the server is going."""
    process, about = start(str(paths["writer"]), "--drain", "20")
    address = Address("127.0.0.1", int(about["url"].rsplit(":", 1)[1]))
    try:
        pieces: list[bytes] = []
        begun = threading.Event()

        def read() -> None:
            connection = http.client.HTTPConnection(address.host, address.port, timeout=60)
            body = json.dumps({"prompt": "rain", "max_tokens": 3000, "temperature": 1, "seed": 1, "stream": True})
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            response = connection.getresponse()
            while piece := response.read1(1 << 16):
                pieces.append(piece)
                begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(30)
        process.send_signal(signal.SIGTERM)
        statuses = []
        while process.poll() is None and len(statuses) < 5:
            try:
                statuses.append(address.ask("GET", "/health")[0])
                status, said, _ = address.ask("POST", "/v1/completions", {"prompt": "rain"})
                assert status == 503 and "shutting down" in said["error"]["message"]
                assert address.ask("GET", "/live")[0] == 200
            except OSError:  # it has gone since
                break
            time.sleep(0.05)
        reader.join(60)
        assert statuses and statuses[0] == 503
        assert b"".join(pieces).endswith(b"data: [DONE]\n\n")
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()


STUCK = """
import sys, time
from approxrt.serving.app import create_app
from approxrt.serving.registry import open_models
from approxrt.serving.server import bind, run
from approxrt.serving.settings import Settings

(name, model), = open_models([sys.argv[1]], 1)

class Stuck:
    def __getattr__(self, name):
        return getattr(model, name)

    def forward_ids(self, *args):
        print("in a pass", flush=True)
        time.sleep(600)

listening = bind("127.0.0.1", 0)
print(listening.getsockname()[1], flush=True)
run(create_app([(name, Stuck())], Settings(drain_s=1.0)), listening)
"""


def test_it_ends_in_time_whatever_a_request_does(paths: dict[str, Path]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(paths["classifier"])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        address = Address("127.0.0.1", int(process.stdout.readline()))
        asking = threading.Thread(target=_ask, args=(address,))
        asking.start()
        assert process.stdout.readline() == "in a pass\n"
        begin = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        assert time.monotonic() - begin < 5
        asking.join(20)
    finally:
        process.kill()


def _ask(address: Address) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):  # the server goes away: there is no answer
        address.ask("POST", "/predict", {"inputs": "rain"})


@pytest.mark.parametrize(
    ("host", "key", "allowed", "want"),
    [
        ("127.0.0.1", "secret", (), ("*",)),
        ("::1", "secret", ("a",), ("*",)),
        ("127.0.0.1", None, ("a",), ("a", "127.0.0.1")),
        ("0.0.0.0", "secret", (), ("0.0.0.0",)),
        ("models.example", None, (), ("models.example",)),
    ],
)
def test_names_of_a_server(host: str, key: Any, allowed: tuple[str, ...], want: tuple[str, ...]) -> None:
    assert hosts_for(host, key, allowed) == want


def test_every_metric_is_documented() -> None:
    """The table of docs/serving.md has what /metrics has, and nothing else."""
    metrics = Metrics()
    families = {f.name + ("_total" if f.type == "counter" else "") for f in metrics.registry.collect()}
    documented = set(re.findall(r"`(approxrt_\w+)`", DOCS.read_text()))
    assert documented == families
