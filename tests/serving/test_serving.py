"""The HTTP server over a real socket: every route, every kind of bad request, limits, keys, metrics, stopping."""

from __future__ import annotations

import concurrent.futures
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import Address, build_models, load_models, running, start

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

from approxrt.errors import InputError
from approxrt.runtime.model import Model
from approxrt.serving.server import bind
from approxrt.serving.settings import Settings

TEXTS = ["a good film", "two hours that nobody will get back", "rain"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def models(paths: dict[str, Path]) -> dict[str, Model]:
    return load_models(paths)


@pytest.fixture(scope="module")
def server(models: dict[str, Model]) -> Iterator[Address]:
    with running(models, max_inputs=50, max_body_bytes=100_000) as address:
        yield address


def ok(address: Address, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
    status, content, _ = address.ask("POST", path, body, headers)
    assert status == 200, content
    return content


# -- text-embeddings-inference ----------------------------------------------------


def test_embed(server: Address, models: dict[str, Model]) -> None:
    want = models["embedder"].embed(TEXTS)
    np.testing.assert_array_equal(np.float32(ok(server, "/embed", {"inputs": TEXTS})), want)
    np.testing.assert_array_equal(np.float32(ok(server, "/embed", {"inputs": TEXTS[1]})), want[1:2])
    plain = models["embedder"].embed(TEXTS, normalize=False)
    np.testing.assert_array_equal(np.float32(ok(server, "/embed", {"inputs": TEXTS, "normalize": False})), plain)
    ids = models["embedder"].encode(TEXTS).ids
    np.testing.assert_array_equal(np.float32(ok(server, "/embed", {"inputs": ids})), want)
    np.testing.assert_array_equal(np.float32(ok(server, "/embed", {"inputs": ids[0]})), want[:1])


def test_predict(server: Address, models: dict[str, Model]) -> None:
    want = models["classifier"].classify(TEXTS, top_k=3)
    got = ok(server, "/predict", {"inputs": [[text] for text in TEXTS]})
    assert [[item["label"] for item in row] for row in got] == [[p.label for p in row] for row in want]
    assert [[item["score"] for item in row] for row in got] == [[p.score for p in row] for row in want]
    assert ok(server, "/predict", {"inputs": TEXTS[0]}) == got[0]
    pair = ok(server, "/predict", {"inputs": TEXTS[:2]})
    assert pair == ok(server, "/predict", {"inputs": [TEXTS[:2]]})[0] != got[0]
    raw = ok(server, "/predict", {"inputs": TEXTS[0], "raw_scores": True})
    assert sorted(item["score"] for item in raw) == pytest.approx(sorted(models["classifier"].logits(TEXTS[0])[0]))


def test_rerank(server: Address, models: dict[str, Model]) -> None:
    logits = models["reranker"].logits([("a film", text) for text in TEXTS])[:, 0]
    got = ok(server, "/rerank", {"query": "a film", "texts": TEXTS, "model": "reranker", "return_text": True})
    assert [item["index"] for item in got] == np.argsort(-logits).tolist()
    assert all(item["text"] == TEXTS[item["index"]] for item in got)
    assert [item["score"] for item in got] == pytest.approx(sorted(1 / (1 + np.exp(-logits)), reverse=True))
    raw = ok(server, "/rerank", {"query": "a film", "texts": TEXTS, "model": "reranker", "raw_scores": True})
    assert [item["score"] for item in raw] == pytest.approx(sorted(logits, reverse=True))
    near = ok(server, "/rerank", {"query": TEXTS[1], "texts": TEXTS, "model": "embedder"})
    assert near[0] == {"index": 1, "score": pytest.approx(1)}


def test_root_answers_as_the_model_can(server: Address, models: dict[str, Model]) -> None:
    first = ok(server, "/", {"inputs": TEXTS[0], "model": "classifier"})
    assert first[0][0]["label"] == models["classifier"].classify(TEXTS[0])[0].label
    top = {"inputs": TEXTS[0], "parameters": {"top_k": 1}, "model": "classifier"}
    assert len(ok(server, "/", top)[0]) == 1
    vectors = ok(server, "/", {"inputs": TEXTS, "model": "embedder"})
    np.testing.assert_array_equal(np.float32(vectors), models["embedder"].embed(TEXTS))


def test_about_the_server(server: Address) -> None:
    assert server.ask("GET", "/health")[0] == server.ask("GET", "/live")[0] == 200
    status, info, _ = server.ask("GET", "/info")
    assert status == 200 and info["model_id"] == "classifier" and info["max_input_length"] == 64
    assert "classifier" in info["model_type"] and info["models"] == ["classifier", "reranker", "embedder"]
    assert server.ask("GET", "/info?model=embedder")[1]["model_type"] == {"embedding": {"pooling": "mean"}}
    assert "reranker" in server.ask("GET", "/info?model=reranker")[1]["model_type"]
    ok(server, "/embed", {"inputs": TEXTS})
    text = server.ask("GET", "/metrics")[1].decode()
    for name in (
        "requests_total",
        "request_seconds_bucket",
        "queue_size",
        "queue_seconds",
        "batch_size",
        "tokens_total",
    ):
        assert f"approxrt_{name}" in text
    assert 'approxrt_requests_total{route="/embed",status="200"}' in text


# -- OpenAI and cohere, raw; their clients are in test_serving_clients.py ---------------


def test_openai_embeddings(server: Address, models: dict[str, Model]) -> None:
    want = models["embedder"].embed(TEXTS)
    got = ok(server, "/v1/embeddings", {"input": TEXTS, "model": "embedder"})
    np.testing.assert_allclose([item["embedding"] for item in got["data"]], want, rtol=1e-6)
    assert [item["index"] for item in got["data"]] == [0, 1, 2] and got["model"] == "embedder"
    assert got["usage"]["prompt_tokens"] == sum(len(ids) for ids in models["embedder"].encode(TEXTS).ids)
    short = ok(server, "/v1/embeddings", {"input": TEXTS[0], "model": "embedder", "dimensions": 8})
    assert np.linalg.norm(short["data"][0]["embedding"]) == pytest.approx(1, abs=1e-5)
    assert len(short["data"][0]["embedding"]) == 8
    assert [m["id"] for m in server.ask("GET", "/v1/models")[1]["data"]] == ["classifier", "reranker", "embedder"]
    assert server.ask("GET", "/v1/models/embedder")[1]["id"] == "embedder"


# -- bad requests -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/predict", {"inputs": 5}, 422, "inputs"),
        ("/predict", {}, 422, "inputs: Field required"),
        ("/predict", {"inputs": []}, 400, "empty list"),
        ("/predict", {"inputs": [["a", "b", "c"]]}, 400, r"inputs\[0\] must be"),
        ("/predict", {"inputs": "a", "model": "nobody"}, 404, "no model is called 'nobody'; there are 'classifier'"),
        ("/predict", {"inputs": TEXTS}, 400, "flat list of 3 texts"),
        ("/predict", {"inputs": "a", "model": "embedder"}, 400, "'embedder' is for embedding; use /embed"),
        ("/predict", {"inputs": "a " * 100}, 413, "tokens, the limit is 64"),
        ("/predict", {"inputs": [["a"]] * 51}, 413, "51 inputs in one request; the limit is 50"),
        ("/predict", {"inputs": ["a\ud800", "b", "c"]}, 422, "unexpected end of hex escape"),
        ("/embed", {"inputs": []}, 400, "empty"),
        ("/embed", {"inputs": [1, 2, 99999]}, 400, "token ids must lie between 0 and"),
        ("/embed", {"inputs": [[1] * 65]}, 400, "65 tokens; it must have 1 to 64"),
        ("/embed", {"inputs": [-1]}, 422, "inputs"),
        ("/embed", {"inputs": [[]]}, 400, "0 tokens"),
        ("/rerank", {"query": "a", "texts": [], "model": "reranker"}, 400, "empty"),
        ("/rerank", {"query": "a", "texts": [], "model": "embedder"}, 400, "empty"),
        ("/rerank", {"query": "a", "texts": ["b"], "model": "classifier"}, 400, "a reranker has one output"),
        ("/rerank", {"query": "a"}, 422, "texts: Field required"),
        ("/", {"inputs": {"text": "a", "text_pair": "b"}, "model": "embedder"}, 400, "embeds single texts"),
        ("/", {"inputs": "a"}, 400, "several models can answer: name one of 'classifier', 'reranker', 'embedder'"),
        ("/", {"inputs": {"text_pair": "b"}, "model": "classifier"}, 400, "inputs must have a text under 'text'"),
        ("/", {"inputs": {}, "model": "classifier"}, 400, "inputs must have a text under 'text'"),
        ("/", {"inputs": [1, 2], "model": "classifier"}, 400, "inputs must be a text"),
        ("/v1/embeddings", {"input": ["a"], "dimensions": 999, "model": "embedder"}, 400, "dimensions is 999"),
        ("/v1/embeddings", {"input": ["a"], "encoding_format": "hex"}, 400, "encoding_format"),
        ("/v2/rerank", {"query": "a", "documents": [{"title": "b"}], "model": "reranker"}, 400, r"documents\[0\]"),
        ("/v2/rerank", {"query": "a", "documents": ["b"], "top_n": 0, "model": "reranker"}, 400, "top_n is 0"),
        ("/v2/models/classifier/infer", {"inputs": 1}, 400, "list 'inputs'"),
        ("/v2/models/nobody/infer", {"inputs": []}, 404, "no model is called"),
        ("/nothing", {}, 404, "Not Found"),
    ],
)
def test_bad_requests_say_why(server: Address, path: str, body: Any, status: int, message: str) -> None:
    got, content, _ = server.ask("POST", path, body)
    assert got == status, content
    error = content.get("error", content.get("message"))
    text = error["message"] if isinstance(error, dict) else error
    assert text and re.search(message, text), text


def test_errors_speak_each_api(server: Address) -> None:
    assert server.ask("POST", "/embed", {})[1]["error_type"] == "Validation"
    assert server.ask("POST", "/v1/embeddings", {})[1]["error"]["type"] == "invalid_request_error"
    assert set(server.ask("POST", "/v1/rerank", {})[1]) == {"message"}
    assert set(server.ask("POST", "/v2/models/classifier/infer", {})[1]) == {"error"}
    status, content, headers = server.ask("GET", "/predict")
    assert status == 405 and "POST" in headers["allow"] and "error" in content


def test_broken_bodies(server: Address) -> None:
    for raw in (b"", b"{", b"[" * 50_000, b"\xff\xfe", b'{"inputs": NaN}', b"null"):
        for path in ("/predict", "/v2/models/classifier/infer"):
            status, content, _ = server.ask("POST", path, raw=raw)
            assert 400 <= status < 500 and content["error"]
    status, content, _ = server.ask("POST", "/predict", {"inputs": "a" * 200_000})
    assert status == 413 and "the limit is 100000" in content["error"]
    # A length that nobody announced is counted as it comes.
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(200):
                connection.sendall(b"1000\r\n" + b"a" * 4096 + b"\r\n")
        except OSError:
            pass  # it has hung up already
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


# -- KServe v2 ----------------------------------------------------------------------


def test_kserve_json_and_binary(server: Address, models: dict[str, Model]) -> None:
    want = models["classifier"].logits(TEXTS)
    tensor: dict[str, Any] = {"name": "text", "datatype": "BYTES", "shape": [3], "data": TEXTS}
    got = ok(server, "/v2/models/classifier/infer", {"id": "7", "inputs": [tensor]})
    assert got["id"] == "7" and [out["name"] for out in got["outputs"]] == ["logits", "label", "score"]
    np.testing.assert_array_equal(np.float32(got["outputs"][0]["data"]).reshape(3, -1), want)

    data = b"".join(struct.pack("<I", len(t)) + t.encode() for t in TEXTS)
    tensor = {k: v for k, v in tensor.items() if k != "data"} | {"parameters": {"binary_data_size": len(data)}}
    outputs = [{"name": "logits", "parameters": {"binary_data": True}}, {"name": "label"}]
    head = json.dumps({"inputs": [tensor], "outputs": outputs}).encode()
    status, content, headers = server.ask(
        "POST",
        "/v2/models/classifier/versions/1/infer",
        raw=head + data,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    size = int(headers["inference-header-content-length"])
    assert status == 200 and json.loads(content[:size])["outputs"][1]["data"] == [
        answer[0].label for answer in models["classifier"].classify(TEXTS)
    ]
    np.testing.assert_array_equal(np.frombuffer(content[size:], "<f4").reshape(3, -1), want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "ids"}, "input 'ids' is unknown"),
        ({"datatype": "FP32"}, "datatype 'FP32'; it must be BYTES"),
        ({"shape": [4]}, "must be 4 strings"),
        ({"shape": [3, 2]}, r"must be \[n\]"),
        ({"shape": "3"}, "shape must be"),
        ({"data": [1, 2, 3]}, "must be 3 strings"),
        ({"data": None}, "must be 3 strings"),
        ({"parameters": {"binary_data_size": 5}}, "binary_data_size is 5; 0 bytes are left"),
    ],
)
def test_kserve_faults(server: Address, change: dict[str, Any], message: str) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [3], "data": TEXTS} | change
    status, content, _ = server.ask("POST", "/v2/models/classifier/infer", {"inputs": [tensor]})
    assert status == 400
    assert re.search(message, content["error"]), content


# -- limits ---------------------------------------------------------------------------


class Slow:
    """A model whose passes wait until they are let go."""

    def __init__(self, model: Model) -> None:
        self.model, self.gate, self.passes = model, threading.Event(), 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward_ids(self, *args: Any) -> np.ndarray:
        self.passes += 1
        assert self.gate.wait(30)
        return self.model.forward_ids(*args)


def test_full_queue_is_refused_and_recovers(models: dict[str, Model]) -> None:
    slow = Slow(models["classifier"])
    with running({"m": slow}, max_queue=4) as address, concurrent.futures.ThreadPoolExecutor(20) as pool:
        calls = [pool.submit(address.ask, "POST", "/predict", {"inputs": TEXTS[0]}) for _ in range(12)]
        refused = [f for f in concurrent.futures.as_completed(calls[:], timeout=20) if _release(slow, f)]
        status, content, headers = refused[0].result()
        assert status == 429 and int(headers["retry-after"]) >= 1 and content["error_type"] == "Overloaded"
        statuses = [f.result()[0] for f in calls]
        assert set(statuses) == {200, 429} and statuses.count(200) >= 4
        assert address.ask("POST", "/predict", {"inputs": TEXTS[0]})[0] == 200
        assert "approxrt_rejected_total" in address.ask("GET", "/metrics")[1].decode()


def _release(slow: Slow, call: Any) -> bool:
    """Whether the call was refused; the first that was lets the others go."""
    if call.result()[0] == 429:
        slow.gate.set()
        return True
    return False


def test_waiting_too_long(models: dict[str, Model]) -> None:
    slow = Slow(models["classifier"])
    with running({"m": slow}, timeout_s=0.2) as address:
        status, content, _ = address.ask("POST", "/predict", {"inputs": TEXTS[0]})
        assert status == 503 and "no answer within 0.2 s" in content["error"]
        slow.gate.set()
        assert address.ask("POST", "/predict", {"inputs": TEXTS[0]})[0] == 200


def test_a_client_that_leaves_takes_its_text_along(models: dict[str, Model]) -> None:
    slow = Slow(models["classifier"])
    with running({"m": slow}, max_batch_tokens=20) as address:
        first = threading.Thread(target=address.ask, args=("POST", "/predict", {"inputs": TEXTS[0]}))
        first.start()
        while not slow.passes:
            time.sleep(0.01)
        body = json.dumps({"inputs": [[TEXTS[1]]] * 40}).encode()
        leaver = socket.create_connection((address.host, address.port))
        head = "POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
        leaver.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
        _until(lambda: _gauge(address, "approxrt_queue_size") == 40)
        leaver.close()
        _until(lambda: 'status="499"' in address.ask("GET", "/metrics")[1].decode())
        slow.gate.set()
        first.join()
        assert address.ask("POST", "/predict", {"inputs": TEXTS[0]})[0] == 200
        assert slow.passes == 2  # none for the forty texts


def _gauge(address: Address, name: str) -> float:
    lines = address.ask("GET", "/metrics")[1].decode().splitlines()
    return next(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def _until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_error_in_a_pass_reaches_only_its_clients(models: dict[str, Model]) -> None:
    class Broken(Slow):
        def forward_ids(self, *args: Any) -> np.ndarray:
            self.passes += 1
            if self.passes == 1:
                raise MemoryError("no room")
            return self.model.forward_ids(*args)

    with running({"m": Broken(models["classifier"])}) as address:
        status, content, _ = address.ask("POST", "/predict", {"inputs": TEXTS[0]})
        assert status == 500 and "no room" not in content["error"]
        assert address.ask("POST", "/predict", {"inputs": TEXTS[0]})[0] == 200


def test_concurrent_answers_are_not_crossed(server: Address, models: dict[str, Model]) -> None:
    rng = np.random.default_rng(0)
    words = " ".join(TEXTS).split()
    texts = [" ".join(rng.choice(words, rng.integers(1, 20))) for _ in range(200)]
    want = models["embedder"].embed(texts)

    def one(i: int) -> bool:
        if i % 10 == 9:
            return server.ask("POST", "/embed", {"inputs": [texts[i], 7]})[0] == 422
        return bool(np.array_equal(np.float32(ok(server, "/embed", {"inputs": texts[i]})), want[i : i + 1]))

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        assert all(pool.map(one, range(200)))


# -- keys -----------------------------------------------------------------------------


def test_api_key(models: dict[str, Model]) -> None:
    with running({"m": models["classifier"]}, api_key="secret") as address:
        body = {"inputs": TEXTS[0]}
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}, {"x-api-key": ""}):
            status, content, got = address.ask("POST", "/predict", body, headers)
            assert status == 401 and got["www-authenticate"] == "Bearer" and "secret" not in content["error"]
        assert address.ask("POST", "/predict", body, {"authorization": "Bearer secret"})[0] == 200
        assert address.ask("POST", "/predict", body, {"x-api-key": "secret"})[0] == 200
        assert address.ask("GET", "/health")[0] == 200
        assert address.ask("GET", "/metrics")[0] == 401


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_queue": 0}, "max_queue is 0; it must be at least 1"),
        ({"wait_ms": float("nan")}, "wait_ms is nan"),
        ({"timeout_s": 0}, "every request would fail"),
        ({"api_key": ""}, "printable ASCII"),
        ({"api_key": "a\nb"}, "printable ASCII"),
    ],
)
def test_senseless_settings(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**change)


# -- the program ------------------------------------------------------------------------


def test_addresses_that_cannot_be_had() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} of 127.0.0.1 is in use"):
            bind("127.0.0.1", port)
    with pytest.raises(InputError, match="port is 70000"):
        bind("127.0.0.1", 70000)
    with pytest.raises(InputError, match=r"not an address|cannot be listened on"):
        bind("203.0.113.7", 0)


def test_stopped_under_load_it_answers_what_it_accepted(paths: dict[str, Path]) -> None:
    process, about = start(f"mine={paths['classifier']}", "--log-format", "json")
    port = int(about["url"].rsplit(":", 1)[1])
    address = Address("127.0.0.1", port)
    assert about["models"] == ["mine"]
    answered, refused, lost = [], [], []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            try:
                status, content, _ = address.ask("POST", "/predict", {"inputs": [[t] for t in TEXTS] * 5})
            except ConnectionRefusedError:
                refused.append(1)
                return
            except OSError as error:
                # Between the kernel's accept and the server's: not read by anybody.
                lost.append(error)
                return
            if status == 503:  # it drains
                refused.append(1)
                return
            answered.append(status == 200 and len(content) == 15)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert process.returncode in (0, -signal.SIGTERM), errors
    assert len(answered) > 8 and all(answered)
    # An accepted request is one that the log knows: each has its answer.
    logged = [json.loads(line) for line in errors.splitlines() if line.startswith("{") and "/predict" in line]
    statuses = [entry["status"] for entry in logged]
    assert statuses.count(200) == len(answered) and set(statuses) <= {200, 503}


def test_wrong_usage_of_the_program(paths: dict[str, Path]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        command = [sys.executable, "-c", "from approxrt.cli.main import main; main()", "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr

    one = str(paths["classifier"])
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        code, error = run(one, "--port", str(taken.getsockname()[1]))
        assert code == 1 and "is in use" in error and "Traceback" not in error
    for arguments, message in (
        ((one, one, "--port", "0"), "two artifacts are called 'classifier'"),
        ((f"a={one}/nothing", "--port", "0"), "does not exist"),
        ((one, "--port", "0", "--log-level", "loud"), "--log-level is 'loud'"),
        ((one, "--port", "0", "--max-queue", "0"), "max_queue is 0"),
    ):
        code, error = run(*arguments)
        assert code == 1 and message in error and "Traceback" not in error
    assert run()[0] == 2
