"""The routes with the clients that people use, over a real socket; in-process objects beside the originals."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from served import Address, build_models, load_models, running

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

from approxrt.conversion import convert
from approxrt.errors import InputError
from approxrt.runtime.model import Model

TEXTS = ["a good film", "two hours that nobody will get back", "rain"]
MISSING = "the client is not installed (extra 'clients')"


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def models(paths: dict[str, Path]) -> dict[str, Model]:
    return load_models(paths)


@pytest.fixture(scope="module")
def server(models: dict[str, Model]) -> Iterator[Address]:
    with running(models, api_key="key") as address:
        yield address


# -- over HTTP --------------------------------------------------------------------


def test_huggingface_hub(models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason=MISSING)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # conftest.py has forbidden the hub
    with running({"m": models["classifier"]}, api_key="key") as address:
        client = hub.InferenceClient(model=address.url, token="key")
        got = client.text_classification(TEXTS[0])
        want = models["classifier"].classify(TEXTS[0], top_k=3)
        assert [(item.label, item.score) for item in got] == [(p.label, p.score) for p in want]
        with pytest.raises(hub.errors.HfHubHTTPError, match="401"):
            hub.InferenceClient(model=address.url, token="other").text_classification(TEXTS[0])
    with running({"m": models["embedder"]}) as address:
        client = hub.InferenceClient(model=address.url)
        vector = client.feature_extraction(TEXTS[0])
        np.testing.assert_allclose(np.asarray(vector).reshape(-1), models["embedder"].embed(TEXTS[0])[0], rtol=1e-6)


def test_openai(server: Address, models: dict[str, Model]) -> None:
    openai = pytest.importorskip("openai", reason=MISSING)
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0)
    want = models["embedder"].embed(TEXTS)
    # The client asks for base64 unless it is told otherwise.
    got = client.embeddings.create(input=TEXTS, model="embedder")
    np.testing.assert_allclose([item.embedding for item in got.data], want, rtol=1e-6)
    plain = client.embeddings.create(input=TEXTS[0], model="embedder", encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, want[0], rtol=1e-6)
    assert got.usage.total_tokens > 0
    assert [model.id for model in client.models.list()] == ["classifier", "reranker", "embedder"]
    assert client.models.retrieve("reranker").id == "reranker"
    with pytest.raises(openai.NotFoundError, match="no model is called 'gpt'"):
        client.embeddings.create(input="a", model="gpt")
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(input=[], model="embedder")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="other", max_retries=0).models.list()


def test_cohere(server: Address, models: dict[str, Model]) -> None:
    cohere = pytest.importorskip("cohere", reason=MISSING)
    logits = models["reranker"].logits([("a film", text) for text in TEXTS])[:, 0]
    for client in (cohere.ClientV2("key", base_url=server.url), cohere.Client("key", base_url=server.url)):
        got = client.rerank(model="reranker", query="a film", documents=TEXTS, top_n=2)
        assert [item.index for item in got.results] == np.argsort(-logits)[:2].tolist()
        assert got.results[0].relevance_score == pytest.approx(1 / (1 + np.exp(-logits.max())))


def test_tritonclient(models: dict[str, Model]) -> None:
    triton = pytest.importorskip("tritonclient.http", reason=MISSING)
    with running(models) as address:
        client = triton.InferenceServerClient(f"{address.host}:{address.port}")
        assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("classifier")
        assert {model["name"] for model in client.get_model_repository_index()} == set(models)
        assert client.get_model_metadata("embedder")["outputs"][0]["name"] == "embedding"
        for binary in (True, False):
            tensor = triton.InferInput("text", [len(TEXTS)], "BYTES")
            tensor.set_data_from_numpy(np.array(TEXTS, dtype=np.object_), binary_data=binary)
            outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("logits", "label", "score")]
            got = client.infer("classifier", [tensor], outputs=outputs)
            np.testing.assert_array_equal(got.as_numpy("logits"), models["classifier"].logits(TEXTS))
            labels = [x.decode() if isinstance(x, bytes) else x for x in got.as_numpy("label").tolist()]
            assert labels == [answer[0].label for answer in models["classifier"].classify(TEXTS)]
        first, second = (triton.InferInput(name, [1], "BYTES") for name in ("text", "text_pair"))
        first.set_data_from_numpy(np.array(["a film"], dtype=np.object_))
        second.set_data_from_numpy(np.array([TEXTS[0]], dtype=np.object_))
        pair = client.infer("reranker", [first, second]).as_numpy("logits")
        np.testing.assert_array_equal(pair, models["reranker"].logits([("a film", TEXTS[0])]))
        with pytest.raises(Exception, match="no model is called 'nobody'"):
            client.infer("nobody", [first])


# -- in process ---------------------------------------------------------------------


def test_sentence_transformer(tmp_path: Path, paths: dict[str, Path]) -> None:
    original = pytest.importorskip("sentence_transformers", reason=MISSING)
    from approxrt.serving.sentence_transformers import SentenceTransformer

    checkpoint = paths["embedder"].parent / "embedder-checkpoint"
    exact = convert(checkpoint, tmp_path / "f32", bits=32)
    theirs, ours = original.SentenceTransformer(str(checkpoint), device="cpu"), SentenceTransformer(exact)
    texts = [*TEXTS, "a good film " * 40]
    for options in ({}, {"normalize_embeddings": True}, {"truncate_dim": 8}, {"prompt": "rain "}):
        np.testing.assert_allclose(ours.encode(texts, **options), theirs.encode(texts, **options), atol=2e-5)
    one = ours.encode(TEXTS[0])
    assert one.shape == theirs.encode(TEXTS[0]).shape == (64,)
    assert ours.encode(TEXTS, convert_to_tensor=True).shape == (3, 64)
    assert isinstance(ours.encode(TEXTS, convert_to_numpy=False), list)
    assert ours.encode([]).shape[0] == 0
    np.testing.assert_allclose(
        ours.similarity(one, ours.encode(TEXTS)), theirs.similarity(one, theirs.encode(TEXTS)).numpy(), atol=2e-5
    )
    assert ours.max_seq_length == theirs.max_seq_length
    with pytest.raises(InputError, match="has no labels"):
        from approxrt.serving.sentence_transformers import CrossEncoder

        CrossEncoder(exact)
    for options in ({"output_value": "token_embeddings"}, {"precision": "int8"}, {"device": "cuda"}):
        with pytest.raises(InputError):
            ours.encode(TEXTS, **options)


def test_cross_encoder(tmp_path: Path, paths: dict[str, Path]) -> None:
    original = pytest.importorskip("sentence_transformers", reason=MISSING)
    from approxrt.serving.sentence_transformers import CrossEncoder

    pairs = [("a film", text) for text in TEXTS]
    for name in ("reranker", "classifier"):
        checkpoint = paths[name].parent / f"{name}-checkpoint"
        exact = convert(checkpoint, tmp_path / name, bits=32)
        theirs, ours = original.CrossEncoder(str(checkpoint), device="cpu", max_length=64), CrossEncoder(exact)
        np.testing.assert_allclose(ours.predict(pairs), theirs.predict(pairs), atol=5e-5)
        np.testing.assert_allclose(ours.predict(pairs[0]), theirs.predict(pairs[0]), atol=5e-5)
        if name == "classifier":
            want = theirs.predict(pairs, apply_softmax=True)
            np.testing.assert_allclose(ours.predict(pairs, apply_softmax=True), want, atol=5e-5)
            with pytest.raises(InputError, match="one output"):
                ours.rank("a", TEXTS)
        else:
            want = theirs.rank("a film", TEXTS, return_documents=True)
            got = ours.rank("a film", TEXTS, return_documents=True)
            assert [(x["corpus_id"], x["text"]) for x in got] == [(x["corpus_id"], x["text"]) for x in want]
            np.testing.assert_allclose([x["score"] for x in got], [x["score"] for x in want], atol=5e-5)


def test_pipeline(tmp_path: Path, paths: dict[str, Path]) -> None:
    transformers = pytest.importorskip("transformers", reason=MISSING)
    from approxrt.serving.pipeline import pipeline

    checkpoint = paths["classifier"].parent / "classifier-checkpoint"
    exact = convert(checkpoint, tmp_path / "f32", bits=32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.pipeline("text-classification", model=str(checkpoint), device="cpu")
    ours = pipeline("text-classification", exact)
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    for inputs in (TEXTS[0], TEXTS, [TEXTS[0]]):
        for options in ({}, {"top_k": 2}, {"top_k": None}):
            got, want = ours(inputs, **options), theirs(inputs, **options)
            assert json.dumps(_labels(got)) == json.dumps(_labels(want))
            np.testing.assert_allclose(_scores(got), _scores(want), atol=5e-5)
    np.testing.assert_allclose(_scores(ours(pair)), _scores(theirs(pair)), atol=5e-5)
    np.testing.assert_allclose(
        _scores(ours(TEXTS, function_to_apply="none")), _scores(theirs(TEXTS, function_to_apply="none")), atol=5e-4
    )
    base = paths["embedder"].parent / "embedder-checkpoint"
    features = pipeline("feature-extraction", convert(base, tmp_path / "e", bits=32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        original = transformers.pipeline("feature-extraction", model=str(base), device="cpu")
    np.testing.assert_allclose(features(TEXTS[1]), original(TEXTS[1]), atol=2e-4)
    with pytest.raises(InputError, match="task is 'summarization'"):
        pipeline("summarization", exact)


def _labels(answer: object) -> object:
    if isinstance(answer, list):
        return [_labels(item) for item in answer]
    assert isinstance(answer, dict)
    return answer["label"]


def _scores(answer: object) -> list[float]:
    if isinstance(answer, list):
        return [score for item in answer for score in _scores(item)]
    assert isinstance(answer, dict)
    return [answer["score"]]
