"""Connections and bodies that go beyond every need: each meets its limit, and a neighbour is answered meanwhile."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from decoders import build_decoder
from served import Address, build_models, load_models, running

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

import approxrt
from approxrt.serving.errors import TooLarge
from approxrt.serving.routes.json_body import check_structure, structure
from approxrt.serving.settings import Settings

GET = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("models")
    writer = approxrt.load(approxrt.convert(build_decoder("llama", folder / "c"), folder / "writer"), threads=1)
    return {**load_models(build_models(folder)), "writer": writer}


@pytest.fixture(scope="module")
def server(models: dict[str, Any]) -> Iterator[Address]:
    limits = {"max_header_bytes": 4000, "max_pipelined": 4, "header_s": 1.0, "body_s": 1.0, "max_connections": 8}
    with running(models, max_inputs=50, max_values=2000, max_stops=4, **limits) as address:
        yield address


def connect(address: Address, sent: bytes = b"") -> socket.socket:
    found = socket.create_connection((address.host, address.port), timeout=PATIENCE_S)
    if sent:
        found.sendall(sent)
    return found


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """(status, everything up to the connection's end)."""
    data = b""
    try:
        while part := connection.recv(1 << 16):
            data += part
    except ConnectionError:
        pass  # the server does not wait for what it will not read
    return int(data.split(b" ", 2)[1]) if data else 0, data


def healthy(address: Address) -> None:
    begin = time.monotonic()
    assert address.ask("GET", "/health")[0] == 200
    assert time.monotonic() - begin < 2


# -- connections -------------------------------------------------------------------------


@pytest.mark.parametrize("piece", [b"a" * 64_000, b"X-A: b\r\n" * 8000], ids=["one header", "many headers"])
def test_a_head_without_end(server: Address, piece: bytes) -> None:
    with connect(server, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-First: ") as connection:
        try:
            for _ in range(1000):  # more than all buffers between the two hold
                connection.sendall(piece)
        except ConnectionError:
            pass
        else:
            pytest.fail("the server has read a head of 64 MB")
        healthy(server)


def test_a_head_over_the_limit_is_told_so(server: Address) -> None:
    with connect(server, b"GET /health HTTP/1.1\r\nX-A: " + b"a" * 4000 + b"\r\n\r\n") as connection:
        status, data = answer(connection)
    assert status == 431 and b"over 4000 bytes" in data
    with connect(server, b"GET /" + b"a" * 4000 + b" HTTP/1.1\r\n\r\n") as connection:
        assert answer(connection)[0] == 431
    with connect(
        server, b"GET /health HTTP/1.1\r\nX-A: " + b"a" * 3000 + b"\r\nConnection: close\r\n\r\n"
    ) as connection:
        assert answer(connection)[0] == 200


def test_pipelined_requests_are_answered_up_to_a_limit(server: Address) -> None:
    with connect(server, GET * 3 + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as connection:
        assert answer(connection)[1].count(b"HTTP/1.1 200") == 4
    with connect(server) as connection:
        try:
            for _ in range(200):
                connection.sendall(GET * 1000)
        except ConnectionError:
            pass
        else:
            pytest.fail("the server has read 200,000 requests whose answers nobody reads")
        healthy(server)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: ",
        b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{",
    ],
    ids=["nothing", "half a head", "half a body"],
)
def test_half_a_request_is_ended(server: Address, sent: bytes) -> None:
    begin = time.monotonic()
    with connect(server, sent) as connection:
        status, _ = answer(connection)
    assert status == 0  # who has not asked is not answered, and before a body that is awaited no answer can be put
    assert 0.5 < time.monotonic() - begin < PATIENCE_S


def test_open_connections_make_room(server: Address) -> None:
    """Eight may be open: forty that send half a head do not keep a ninth from its answer."""
    held = [connect(server, b"GET /health HTTP/1.1\r\nX-a: ") for _ in range(40)]
    healthy(server)
    for connection in held:
        connection.close()
    healthy(server)


def test_a_body_of_a_refused_request_is_not_read_for_ever(server: Address) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n"  # no content-type: 415
    begin = time.monotonic()
    with connect(server, head) as connection:
        try:
            while time.monotonic() - begin < PATIENCE_S:
                connection.sendall(b"1\r\na\r\n" * 10)
                time.sleep(0.01)
        except ConnectionError:
            pass
        else:
            pytest.fail("the server has read on for ten seconds")
    healthy(server)


# -- bodies -------------------------------------------------------------------------------


def post(address: Address, path: str, raw: bytes, kind: str | None = "application/json") -> tuple[int, str]:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=30)
    try:
        connection.request("POST", path, raw, {} if kind is None else {"content-type": kind})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("path", "head", "unit", "tail"),
    [
        ("/embed", '{"inputs":[', "{}", "]}"),
        ("/embed", '{"inputs":[', "[1]", "]}"),
        ("/embed", '{"inputs":[', "1", "]}"),
        ("/predict", '{"inputs":[', '""', "]}"),
        ("/", '{"inputs":[', "{}", "]}"),
        ("/v1/embeddings", '{"input":[', "{}", "]}"),
        ("/v1/completions", '{"prompt":[', "{}", "]}"),
        ("/v1/chat/completions", '{"messages":[', "{}", "]}"),
        ("/v2/models/classifier/infer", '{"inputs":[', "{}", "]}"),
        ("/rerank", '{"query":"a","texts":[', "1.5", "]}"),
    ],
)
def test_bodies_of_a_million_things(server: Address, path: str, head: str, unit: str, tail: str) -> None:
    raw = (head + ",".join([unit] * 400_000) + tail).encode()
    begin = time.monotonic()
    status, said = post(server, path, raw)
    assert status == 413 and ("values" in said or "lists and objects" in said)
    assert time.monotonic() - begin < PATIENCE_S


def test_a_client_that_leaves_amid_its_body_is_no_failure(
    models: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It is counted, and does not fill the log."""
    with running(models) as address:
        head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        connect(address, head + b"Content-Length: 100\r\n\r\n{").close()
        end = time.monotonic() + PATIENCE_S
        while 'route="/predict",status="499"' not in address.ask("GET", "/metrics")[1].decode():
            assert time.monotonic() < end
            time.sleep(0.05)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize("path", ["/embed", "/predict", "/v1/embeddings", "/v1/completions", "/rerank"])
def test_one_fault_is_enough(server: Address, path: str) -> None:
    field = {"/v1/embeddings": "input", "/v1/completions": "prompt", "/rerank": "texts"}.get(path, "inputs")
    status, said = post(server, path, json.dumps({"query": "a", field: [1.5] * 1000}).encode())
    assert status in (400, 422) and len(said) < 2000


@pytest.mark.parametrize("path", ["/predict", "/", "/v2/models/classifier/infer", "/v1/completions"])
def test_deep_nesting(server: Address, path: str) -> None:
    for depth in (300, 4000):
        status, _ = post(server, path, b'{"inputs":' + b"[" * depth + b"]" * depth + b"}")
        assert status in (400, 413, 422)


@pytest.mark.parametrize(
    "raw",
    [b'{"inputs":"x","truncate":' + b"9" * 100_000 + b"}", b'{"inputs":"x","dimensions":' + b"9" * 100_000 + b"}"],
)
def test_endless_numbers(server: Address, raw: bytes) -> None:
    for path in ("/", "/predict", "/embed"):
        assert post(server, path, raw)[0] in (400, 413, 422)


def test_texts_full_of_brackets_are_texts(server: Address) -> None:
    text = '{"a": [1, 2, {"b": "\\"}"}]}, ' * 3000
    status, said = post(server, "/predict", json.dumps({"inputs": text, "truncate": True}).encode())
    assert status == 200, said


def test_structure_leaves_strings_out() -> None:
    for value in (
        {"a": ["x,y", "{[", '"quoted", \\', "\\\\"], "b": [[1], [2, 3]], "": {}},
        ["\\", '\\"', '"', ",", "[{"],
        "only, a [text]",
        [],
    ):
        raw = json.dumps(value).encode()
        stripped = json.dumps(_without_texts(value)).encode()
        want = stripped.count(b","), stripped.count(b"[") + stripped.count(b"{")
        assert structure(raw) == want, raw
    check_structure(b"[" * 8000, Settings(max_inputs=1024))
    with pytest.raises(TooLarge, match="the body has 9000 lists and objects; the limit is 8192"):
        check_structure(b"[" * 9000, Settings(max_inputs=1024))


def _without_texts(value: Any) -> Any:
    if isinstance(value, str):
        return ""
    if isinstance(value, list):
        return [_without_texts(item) for item in value]
    return {str(i): _without_texts(item) for i, item in enumerate(value.values())} if isinstance(value, dict) else value


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"stop": [str(i) for i in range(5)]}, "stop has 5 strings; the limit is 4"),
        ({"stop": "x" * 1001}, "stop has a string of 1001 characters; the limit is 1000"),
        ({"prompt": "rain " * 200_000}, "characters; the model's context has 128 tokens"),
        ({"prompt": ["rain"] * 51}, "51 prompts in one request; the limit is 50"),
    ],
)
def test_texts_that_cannot_be_read(server: Address, change: dict[str, Any], said: str) -> None:
    body = {"model": "writer", "prompt": "rain", "max_tokens": 2, **change}
    begin = time.monotonic()
    status, found = post(server, "/v1/completions", json.dumps(body).encode())
    assert status in (400, 413) and said in found
    assert time.monotonic() - begin < 2


def test_the_length_of_a_very_long_text_is_told_without_reading_it(models: dict[str, Any]) -> None:
    with pytest.raises(approxrt.errors.TextTooLongError, match="has 500000 characters, more than 64 tokens"):
        models["classifier"].classify("rain " * 100_000, truncate=False)


# -- who may ask -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_a_body_says_that_it_is_json(server: Address, kind: str | None) -> None:
    status, said = post(server, "/predict", b'{"inputs": "rain", "model": "classifier"}', kind)
    assert status == 415 and "send application/json" in said


def test_a_body_of_json_with_more_words(server: Address) -> None:
    raw = b'{"inputs": "rain", "model": "classifier"}'
    for kind in ("application/json; charset=utf-8", "Application/JSON", "application/vnd.api+json"):
        assert post(server, "/predict", raw, kind)[0] == 200


def hosted(address: Address, host: str, path: str = "/info") -> int:
    with connect(address, f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()) as connection:
        return answer(connection)[0]


def test_names_that_point_here(models: dict[str, Any]) -> None:
    """A page whose name was made to resolve to this machine is of the same origin for a browser."""
    with running(models, allowed_hosts=("models.example",)) as address:
        for host in ("127.0.0.1", "127.0.0.1:80", "[::1]:8080", "localhost:1", "a.localhost", "Models.Example:80"):
            assert hosted(address, host) == 200
        for host in ("evil.example", "models.example.evil.example", "localhost.evil.example", "127.0.0.1.evil.example"):
            assert hosted(address, host) == 421
            assert hosted(address, host, "/health") == 200
    with running(models, allowed_hosts=("*",)) as address:
        assert hosted(address, "evil.example") == 200


def test_requests_of_one_client(models: dict[str, Any]) -> None:
    with running(models, max_client_requests=1) as address:
        body = json.dumps({"inputs": "rain", "model": "classifier"}).encode()
        head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
        with connect(address, head + str(len(body)).encode() + b"\r\n\r\n") as connection:
            time.sleep(0.3)  # its body is awaited: under way
            status, said = post(address, "/predict", body)
            assert status == 429 and "1 requests of this client are under way" in said
            connection.sendall(body)
            assert b"200 OK" in connection.recv(4096)
        assert post(address, "/predict", body)[0] == 200


def test_errors_name_no_folder(models: dict[str, Any], server: Address) -> None:
    path = str(Path(models["writer"].path).parent)
    for route, body in (
        ("/predict", {"inputs": "rain", "model": "writer"}),
        ("/v1/completions", {"prompt": "rain", "model": "classifier"}),
        ("/embed", {"inputs": "rain", "model": "classifier"}),
    ):
        status, said = post(server, route, json.dumps(body).encode())
        assert status == 400 and path not in said


def test_a_short_folder_is_no_part_of_other_words(models: dict[str, Any], tmp_path: Path) -> None:
    """Served by a relative path of one letter, the letter stays in every other word of a message."""
    shutil.copytree(models["classifier"].path, tmp_path / "a")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with running({"classifier": approxrt.load("a", threads=1)}) as address:
            status, said = post(address, "/embed", b'{"inputs": "rain"}')
    assert status == 400 and "model 'classifier' is for classification; use /predict" in said


def test_docs_load_nothing(server: Address) -> None:
    status, page, headers = server.ask("GET", "/docs")
    text = page.decode()
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    assert "http://" not in text and "https://" not in text and "<script" not in text
    for route in ("/predict", "/v1/chat/completions", "/v2/models/{name}/infer", "max_completion_tokens"):
        assert route in text
