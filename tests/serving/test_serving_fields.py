"""Fields of requests: every one is obeyed, asks for what is done anyway, or is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_tokenizer
from specs import random_tensors, small_spec

pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

from fastapi.testclient import TestClient

import approxrt
from approxrt.artifact.spec.encoder import HeadSpec, TextSpec
from approxrt.artifact.writer import write_artifact
from approxrt.runtime.model import Model
from approxrt.serving.app import create_app
from approxrt.serving.settings import Settings

TEXTS = ["a good film", "two hours that nobody will get back", "rain"]
LONG = "rain " * 80 + "good"
PROMPTS = TextSpec(prompts={"query": "the price of ", "none": ""})


def build(folder: Path, labels: tuple[str, ...], **changes: Any) -> Model:
    """A random float32 encoder of 60 tokens."""
    tokenizer = build_tokenizer("bert")
    task = {0: "embedding", 1: "regression"}.get(len(labels), "classification")
    fields: dict[str, Any] = {
        "vocab_size": tokenizer.get_vocab_size(),
        "max_positions": 64,
        "max_length": 60,
        "inputs": "any",
        "labels": labels,
        "task_type": task,
    }
    spec = small_spec(**(fields | changes))
    path = write_artifact(folder, spec, random_tensors(spec), tokenizer.to_str().encode(), {})
    return approxrt.load(path, device="cpu", threads=1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    folder = tmp_path_factory.mktemp("models")
    plain = HeadSpec(pooling="mean")
    return {
        "classifier": build(folder / "a", ("no", "yes")),
        "reranker": build(folder / "b", ("fits",)),
        "embedder": build(folder / "c", (), head=plain, text=PROMPTS),
    }


@pytest.fixture(scope="module")
def client(models: dict[str, Model]) -> Iterator[TestClient]:
    with TestClient(create_app(models.items()), base_url="http://127.0.0.1") as found:
        yield found


def ok(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    answer = client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, path: str, body: dict[str, Any]) -> str:
    answer = client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    return answer.text


# -- fields of every route ------------------------------------------------------------

BODIES: dict[str, dict[str, Any]] = {
    "/embed": {"inputs": "a"},
    "/predict": {"inputs": "a"},
    "/rerank": {"query": "a", "texts": ["b"]},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": ["b"]}},
    "/": {"inputs": "a", "model": "embedder"},
    "/v1/embeddings": {"input": "a"},
    "/v1/rerank": {"query": "a", "documents": ["b"]},
    "/v2/rerank": {"query": "a", "documents": ["b"]},
    "/v2/models/classifier/infer": {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"]}]},
}


@pytest.mark.parametrize("path", BODIES)
def test_unknown_fields_are_refused_by_name(client: TestClient, path: str) -> None:
    body = BODIES[path]
    want = ok(client, path, body)
    assert "strange=1 is not supported" in refused(client, path, body | {"strange": 1})
    assert "strange=False is not supported" in refused(client, path, body | {"strange": False})
    same = ok(client, path, body | {"strange": None, "user": "somebody", "metadata": {"a": "b"}})
    for document in (want, same):
        if isinstance(document, dict):
            document.pop("id", None)
    assert same == want


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["b"], "x": 1}}, "inputs.x=1"),
        ("/similarity", BODIES["/similarity"] | {"parameters": {"x": 1}}, "parameters.x=1"),
        ("/", {"inputs": "a", "model": "classifier", "parameters": {"x": 1}}, "parameters.x=1"),
        ("/", {"inputs": "a", "model": "classifier", "options": {"x": 1}}, "options.x=1"),
        ("/", {"inputs": {"text": "a", "x": 1}, "model": "classifier"}, "inputs.x=1"),
        ("/", {"inputs": [{"text": "a"}, {"text": "a", "x": 1}], "model": "classifier"}, "inputs[1].x=1"),
        ("/v1/rerank", BODIES["/v1/rerank"] | {"max_chunks_per_doc": 3}, "max_chunks_per_doc=3"),
        ("/v1/rerank", BODIES["/v1/rerank"] | {"rank_fields": ["title"]}, "rank_fields=['title']"),
        ("/v2/rerank", BODIES["/v2/rerank"] | {"max_tokens_per_doc": 5}, "max_tokens_per_doc is 5"),
        ("/v1/embeddings", {"input": "a", "input_type": "query"}, "input_type='query'"),
    ],
)
def test_unknown_fields_inside(client: TestClient, path: str, body: dict[str, Any], name: str) -> None:
    assert name in refused(client, path, body)


def test_kserve_fields(client: TestClient) -> None:
    path = "/v2/models/classifier/infer"
    tensor = BODIES[path]["inputs"][0]
    for change, name in (
        ({"parameters": {"sequence_id": 7}}, "parameters.sequence_id=7"),
        ({"parameters": {"truncate": "no"}}, "parameters.truncate is 'no'"),
        ({"inputs": [tensor | {"encoding": "x"}]}, "inputs[0].encoding"),
        ({"inputs": [tensor | {"parameters": {"x": 1}}]}, "inputs[0].parameters.x=1"),
        ({"outputs": [{"name": "logits", "parameters": {"classification": 2}}]}, "parameters.classification=2"),
    ):
        assert name in json.loads(refused(client, path, {"inputs": [tensor], **change}))["error"]
    assert ok(client, path, {"inputs": [tensor], "parameters": {"truncate": True, "timeout": 5}})


# -- /embed and /similarity ---------------------------------------------------------


def test_embed_obeys_its_fields(client: TestClient, models: dict[str, Model]) -> None:
    model = models["embedder"]

    def embed(**fields: Any) -> np.ndarray:
        return np.float32(ok(client, "/embed", {"inputs": TEXTS, **fields}))

    plain = embed()
    np.testing.assert_array_equal(plain, model.embed(TEXTS))
    np.testing.assert_array_equal(embed(prompt_name="query"), model.embed(TEXTS, prompt_name="query"))
    assert not np.array_equal(embed(prompt_name="query"), plain)
    np.testing.assert_array_equal(embed(prompt_name="none"), plain)
    np.testing.assert_array_equal(embed(prompt_name=None, truncate=None, normalize=None, dimensions=None), plain)
    raw = embed(normalize=False)
    np.testing.assert_array_equal(embed(normalize=False, dimensions=5), raw[:, :5])
    short = embed(dimensions=5)
    np.testing.assert_allclose(short, raw[:, :5] / np.linalg.norm(raw[:, :5], axis=1, keepdims=True), rtol=1e-5)
    message = json.loads(refused(client, "/embed", {"inputs": "a", "prompt_name": "passage"}))["error"]
    assert "prompt_name is 'passage'" in message and "'query'" in message
    assert client.post("/embed", json={"inputs": "a", "dimensions": True}).status_code == 422
    for dimensions in (0, 10_000):
        assert f"dimensions is {dimensions}" in refused(client, "/embed", {"inputs": "a", "dimensions": dimensions})
    for name, value in (("prompt_name", "query"), ("truncation_direction", "left")):
        assert f"{name} is for texts" in refused(client, "/embed", {"inputs": [5, 6], name: value})


def test_truncation_direction(client: TestClient, models: dict[str, Model]) -> None:
    model = models["embedder"]
    right = ok(client, "/embed", {"inputs": LONG, "truncate": True})
    assert ok(client, "/embed", {"inputs": LONG, "truncate": True, "truncation_direction": "Right"}) == right
    left = ok(client, "/embed", {"inputs": LONG, "truncate": True, "truncation_direction": "Left"})
    assert ok(client, "/embed", {"inputs": LONG, "truncate": True, "truncation_direction": "left"}) == left != right
    encoded = model.encode([LONG], truncation_side="left")
    rows = model.forward_ids(encoded.ids, encoded.type_ids, "pooled")
    np.testing.assert_allclose(left, rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-6)
    for path, body in (
        ("/predict", {"inputs": LONG, "truncate": True}),
        ("/rerank", {"query": "a", "texts": [LONG], "truncate": True}),
        ("/", {"inputs": LONG, "model": "classifier"}),
    ):
        assert ok(client, path, body | {"truncation_direction": "Left"}) != ok(client, path, body)
    answer = client.post("/embed", json={"inputs": LONG, "truncation_direction": "Up"})
    assert answer.status_code == 422 and "truncation_direction" in answer.json()["error"]


def test_prompts_that_are_not_pooled(tmp_path: Path) -> None:
    text = TextSpec(prompts={"query": "the price of "}, default_prompt_name="query", include_prompt=False)
    model = build(tmp_path / "a", (), head=HeadSpec(pooling="mean"), text=text)
    whole = build(tmp_path / "b", (), head=HeadSpec(pooling="mean"))
    with TestClient(create_app([("m", model)]), base_url="http://127.0.0.1") as client:
        got = np.float32(ok(client, "/embed", {"inputs": TEXTS}))
        np.testing.assert_array_equal(got, model.embed(TEXTS))
        assert not np.allclose(got, whole.embed(TEXTS)) and not np.allclose(
            got, whole.embed(TEXTS, prompt="the price of ")
        )
        openai = ok(client, "/v1/embeddings", {"input": TEXTS})
        np.testing.assert_allclose([item["embedding"] for item in openai["data"]], got, rtol=1e-6)


def test_similarity(client: TestClient, models: dict[str, Model]) -> None:
    rows = models["embedder"].embed(TEXTS)
    inputs = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}
    want = rows[1:] @ rows[0]
    np.testing.assert_allclose(ok(client, "/similarity", {"inputs": inputs}), want, rtol=1e-6)
    np.testing.assert_allclose(ok(client, "/", {"inputs": inputs}), want, rtol=1e-6)
    queries = models["embedder"].embed(TEXTS, prompt_name="query")
    got = ok(client, "/similarity", {"inputs": inputs, "parameters": {"prompt_name": "query"}})
    np.testing.assert_allclose(got, queries[1:] @ queries[0], rtol=1e-6)
    assert "empty list" in refused(client, "/similarity", {"inputs": {"source_sentence": "a", "sentences": []}})
    assert "is for classification" in refused(client, "/", {"inputs": inputs, "model": "classifier"})
    assert "a list of texts 'sentences'" in refused(client, "/", {"inputs": {"source_sentence": "a"}})


# -- /predict, / and /rerank --------------------------------------------------------


def test_predict_has_one_rule_for_lists(client: TestClient, models: dict[str, Model]) -> None:
    texts, pair = [[text] for text in TEXTS], TEXTS[:2]
    many = ok(client, "/predict", {"inputs": texts})
    assert [row[0]["label"] for row in many] == [answer[0].label for answer in models["classifier"].classify(TEXTS)]
    assert ok(client, "/predict", {"inputs": TEXTS[0]}) == ok(client, "/predict", {"inputs": [TEXTS[0]]}) == many[0]
    one = ok(client, "/predict", {"inputs": pair})
    assert one == ok(client, "/predict", {"inputs": [pair]})[0]
    assert one[0]["score"] == pytest.approx(models["classifier"].classify((pair[0], pair[1]))[0].score)
    assert ok(client, "/predict", {"inputs": [[TEXTS[0]], pair]}) == [many[0], one]
    assert "a flat list is one text or one pair" in refused(client, "/predict", {"inputs": TEXTS})
    assert "empty list" in refused(client, "/predict", {"inputs": []})
    assert "inputs[1] must be" in refused(client, "/predict", {"inputs": [["a"], []]})


def test_hub_forms(client: TestClient, models: dict[str, Model]) -> None:
    model = models["classifier"]
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}

    def scores(inputs: Any, **fields: Any) -> list[list[float]]:
        answer = ok(client, "/", {"inputs": inputs, "model": "classifier", **fields})
        return [[item["score"] for item in row] for row in answer]

    want = [[p.score for p in row] for row in model.classify([(TEXTS[0], TEXTS[1]), TEXTS[2]], top_k=2)]
    assert scores([pair, {"text": TEXTS[2]}]) == want
    assert scores(pair) == scores([[TEXTS[0], TEXTS[1]]]) == scores([TEXTS[0], TEXTS[1]]) == want[:1]
    assert scores({"text": TEXTS[2], "text_pair": None}) == scores(TEXTS[2]) == want[1:]
    assert scores(TEXTS[2], options={"wait_for_model": True, "use_cache": False}) == want[1:]
    assert scores(TEXTS[2], top_k=1) == scores(TEXTS[2], parameters={"top_k": 1}) == [want[1][:1]]
    logits = np.sort(model.logits(TEXTS[2])[0])[::-1]
    np.testing.assert_allclose(scores(TEXTS[2], parameters={"function_to_apply": "none"})[0], logits, rtol=1e-6)
    sigmoid = 1 / (1 + np.exp(-logits.astype(float)))
    np.testing.assert_allclose(scores(TEXTS[2], function_to_apply="sigmoid")[0], sigmoid, rtol=1e-6)
    assert "normalize: model 'classifier'" in refused(
        client, "/", {"inputs": "a", "model": "classifier", "normalize": True}
    )
    assert "top_k: model 'embedder'" in refused(client, "/", {"inputs": "a", "model": "embedder", "top_k": 1})
    by_address = ok(client, "/models/classifier", {"inputs": pair})
    assert [[item["score"] for item in row] for row in by_address] == want[:1]
    assert "no model is called 'nobody'" in client.post("/models/nobody", json={"inputs": "a"}).json()["error"]
    assert "in the address" in refused(client, "/models/embedder", {"inputs": "a", "model": "classifier"})
    two = {"inputs": "a", "model": "classifier", "top_k": 1, "parameters": {"top_k": 2}}
    assert "top_k is 1 beside the inputs and 2 in parameters" in refused(client, "/", two)
    vectors = ok(client, "/", {"inputs": TEXTS, "model": "embedder", "parameters": {"prompt_name": "query"}})
    np.testing.assert_array_equal(np.float32(vectors), models["embedder"].embed(TEXTS, prompt_name="query"))


def test_rerank_is_never_answered_by_a_classifier(client: TestClient, models: dict[str, Model], tmp_path: Path) -> None:
    body = {"query": "a film", "texts": TEXTS}
    logits = models["reranker"].logits([("a film", text) for text in TEXTS])[:, 0]
    # Without a name the reranker, though the classifier came first and the embedder can rank, too.
    got = ok(client, "/rerank", body)
    assert [item["index"] for item in got] == np.argsort(-logits, kind="stable").tolist()
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        assert "a reranker has one output" in refused(
            client, path, {"query": "a", "model": "classifier", "texts" if path == "/rerank" else "documents": ["b"]}
        )
    single = build(tmp_path / "s", ("stars",), inputs="single")
    with TestClient(
        create_app([("single", single), ("classifier", models["classifier"])]), base_url="http://127.0.0.1"
    ) as other:
        assert "no model here is for that; there are 'single' (reranker), 'classifier'" in refused(
            other, "/rerank", body
        )
        assert "takes single texts; a reranker takes pairs" in refused(other, "/rerank", body | {"model": "single"})
    with TestClient(
        create_app([("classifier", models["classifier"]), ("e", models["embedder"])]), base_url="http://127.0.0.1"
    ) as other:
        rows = models["embedder"].embed(["a film", *TEXTS])
        scores = {item["index"]: item["score"] for item in ok(other, "/rerank", body)}
        np.testing.assert_allclose([scores[i] for i in range(3)], rows[1:] @ rows[0], rtol=1e-6)


@pytest.mark.parametrize(("name", "function"), [("", "sigmoid"), ("identity", "none"), ("tanh", "tanh")])
def test_rerank_applies_the_models_activation(tmp_path: Path, name: str, function: str) -> None:
    model = build(tmp_path / "m", ("fits",), head=HeadSpec(activation_fn=name))
    logits = model.logits([("a", text) for text in TEXTS])[:, 0].astype(float)
    want = {"sigmoid": 1 / (1 + np.exp(-logits)), "none": logits, "tanh": np.tanh(logits)}[function]
    with TestClient(create_app([("m", model)]), base_url="http://127.0.0.1") as client:
        for raw, values in ((False, want), (True, logits)):
            got = ok(client, "/rerank", {"query": "a", "texts": TEXTS, "raw_scores": raw})
            np.testing.assert_allclose([item["score"] for item in got], sorted(values, reverse=True), rtol=1e-5)
        cohere = ok(client, "/v2/rerank", {"query": "a", "documents": TEXTS})["results"]
        want = sorted(1 / (1 + np.exp(-logits)), reverse=True)
        np.testing.assert_allclose([item["relevance_score"] for item in cohere], want, rtol=1e-5)


def test_models_that_nobody_names(client: TestClient, models: dict[str, Model]) -> None:
    assert "several models can answer: name one of 'classifier', 'reranker', 'embedder'" in refused(
        client, "/", {"inputs": "a"}
    )
    with TestClient(
        create_app([("b", models["classifier"]), ("a", models["classifier"])]), base_url="http://127.0.0.1"
    ) as other:
        assert "name one of 'b', 'a' in 'model'" in refused(other, "/predict", {"inputs": "a"})
        assert "no model here is for that; there are 'b' (classifier), 'a'" in refused(other, "/embed", {"inputs": "a"})
        assert "no model here is for that" in refused(other, "/v1/completions", {"prompt": "a"})
    with TestClient(create_app([("only", models["reranker"])]), base_url="http://127.0.0.1") as other:
        assert len(ok(other, "/predict", {"inputs": "a"})) == 1
        assert "model 'only' is for regression; use /predict" in refused(other, "/embed", {"inputs": "a"})


# -- around them --------------------------------------------------------------------


def test_health_may_be_asked_with_head(models: dict[str, Model]) -> None:
    with TestClient(create_app(models.items(), Settings(api_key="key")), base_url="http://127.0.0.1") as client:
        for path in ("/health", "/live", "/v2/health/live", "/v2/health/ready"):
            answer = client.head(path)
            assert answer.status_code == 200 and not answer.content


def test_cors_is_an_option(models: dict[str, Model]) -> None:
    ask = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    with TestClient(create_app(models.items()), base_url="http://127.0.0.1") as client:
        assert client.options("/embed", headers=ask).status_code == 405
        assert "access-control-allow-origin" not in client.get("/live", headers=ask).headers
    settings = Settings(api_key="key", cors_origins=("http://localhost:3000",))
    with TestClient(create_app(models.items(), settings), base_url="http://127.0.0.1") as client:
        asked = client.options("/embed", headers=ask | {"access-control-request-headers": "authorization,content-type"})
        assert asked.status_code == 200
        assert asked.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "authorization" in asked.headers["access-control-allow-headers"]
        # An error is for the page to read, too.
        answer = client.post("/embed", json={"inputs": "a"}, headers={"origin": "http://localhost:3000"})
        assert answer.status_code == 401 and answer.headers["access-control-allow-origin"] == "http://localhost:3000"
        other = client.options("/embed", headers=ask | {"origin": "http://elsewhere"})
        assert "access-control-allow-origin" not in other.headers
    with TestClient(create_app(models.items(), Settings(cors_origins=("*",))), base_url="http://127.0.0.1") as client:
        assert client.get("/live", headers={"origin": "http://any"}).headers["access-control-allow-origin"] == "*"
    for origin in ("localhost", "https://a.org/path", ""):
        with pytest.raises(approxrt.errors.InputError, match="a scheme and a host"):
            Settings(cors_origins=(origin,))
