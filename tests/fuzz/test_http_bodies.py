"""Bodies that nobody would write, on every route: an error that says why, never a failure, and quickly.

`make fuzz` tries more of them (APPROXRT_FUZZ_EXAMPLES).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from decoders import build_decoder
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import build_models, load_models

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

from fastapi.testclient import TestClient

import approxrt
from approxrt.serving.app import create_app
from approxrt.serving.settings import Settings

EXAMPLES = int(os.environ.get("APPROXRT_FUZZ_EXAMPLES", "60"))
PATIENCE_S = 5.0  # a body on a machine that does something else, too
bounded = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)

# What each route reads, as it should be: the parts that are put in other places below.
BODIES: dict[str, dict[str, Any]] = {
    "/embed": {"inputs": ["a film"], "normalize": True, "truncate": True, "dimensions": 8, "model": "embedder"},
    "/predict": {"inputs": [["a film"], ["a", "b"]], "raw_scores": False, "model": "classifier"},
    "/rerank": {"query": "a", "texts": ["b", "c"], "return_text": True, "model": "reranker"},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}, "model": "embedder"},
    "/": {"inputs": [{"text": "a", "text_pair": "b"}], "parameters": {"top_k": 1}, "model": "classifier"},
    "/v1/embeddings": {"input": ["a"], "encoding_format": "float", "model": "embedder"},
    "/v1/rerank": {"query": "a", "documents": ["b", {"text": "c"}], "top_n": 1, "model": "reranker"},
    "/v1/completions": {"prompt": ["a"], "max_tokens": 2, "temperature": 0.5, "stop": ["x"], "seed": 1, "top_k": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]},
    "/v2/models/classifier/infer": {
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}],
        "outputs": [{"name": "logits"}],
    },
}

words = st.sampled_from(
    ["a film", "", "\x00", "\ud800", "x" * 500, "é" * 40, "<|im_end|>", "[PAD]", "{{ x }}", "\u0301"]
)
numbers = st.one_of(
    st.integers(-(10**30), 10**30), st.floats(), st.sampled_from([0, 1, -1, 1e-320, 2**31, 2**63, 10**300])
)
leaves = st.one_of(st.none(), st.booleans(), numbers, words)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["text", "inputs", "role", "content", "type", "name", "x"]), inner, max_size=4),
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("models")
    writer = approxrt.load(approxrt.convert(build_decoder("llama", folder / "c"), folder / "writer"), threads=1)
    models = {**load_models(build_models(folder)), "writer": writer}
    app = create_app(models.items(), Settings(max_inputs=20, max_body_bytes=100_000, max_values=500))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=True) as found:
        yield found


def ask(client: TestClient, path: str, raw: bytes, headers: dict[str, str] | None = None) -> None:
    begin = time.monotonic()
    answer = client.post(path, content=raw, headers={"content-type": "application/json", **(headers or {})})
    assert time.monotonic() - begin < PATIENCE_S
    assert answer.status_code in (200, 400, 404, 413, 422), answer.text
    if answer.status_code == 200 and "json" in answer.headers["content-type"]:
        json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"the answer has {name}"))
    else:
        assert len(answer.text) < 20_000


@st.composite
def changed(draw: Any) -> tuple[str, Any]:
    """A route with its body, of which some part is another value, is missing, or stands twice."""
    path = draw(st.sampled_from(sorted(BODIES)))
    body = json.loads(json.dumps(BODIES[path]))
    if path.startswith("/v1/c"):
        body["model"] = "writer"
    for _ in range(draw(st.integers(1, 3))):
        at: Any = body
        while True:
            keys = list(range(len(at))) if isinstance(at, list) else sorted(at)
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.booleans()):
                at = at[key]
                continue
            change = draw(st.integers(0, 3))
            if change == 0:
                del at[key]
            elif change == 1 and isinstance(at, list):
                at.append(at[key])
            else:
                at[key] = draw(values)
            break
    return path, body


@bounded
@given(changed())
def test_bodies_that_are_nearly_right(client: TestClient, asked: tuple[str, Any]) -> None:
    path, body = asked
    ask(client, path, json.dumps(body).encode())


@bounded
@given(st.sampled_from(sorted(BODIES)), values)
def test_other_json(client: TestClient, path: str, body: Any) -> None:
    ask(client, path, json.dumps(body).encode())


@bounded
@given(st.sampled_from(sorted(BODIES)), st.binary(max_size=300), st.integers(0, 400), st.integers(0, 3))
def test_bytes(client: TestClient, path: str, noise: bytes, at: int, way: int) -> None:
    raw = json.dumps(BODIES[path]).encode()
    at = min(at, len(raw))
    ask(client, path, (noise, raw[:at] + noise + raw[at:], raw[:at], raw[at:])[way])


@bounded
@given(st.binary(max_size=120), st.integers(-3, 400), st.integers(-3, 200), st.integers(-2, 5))
def test_binary_tensors(client: TestClient, binary: bytes, length: int, size: int, count: int) -> None:
    tensor = {"name": "text", "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    given_length = str(len(head) if length > 300 else length)
    ask(client, "/v2/models/classifier/infer", head + binary, {"inference-header-content-length": given_length})
