"""Entities and answers from the server and from the pipeline object: those of the model itself, or a named refusal."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from families import build_checkpoint
from originals import edit_json
from served import Address, load_models, running

from approxrt.conversion import convert
from approxrt.errors import InputError, UnsupportedTaskError
from approxrt.runtime.model import Model
from approxrt.serving.pipeline import pipeline

TEXTS = ["She sold seashells; he bought 42 of them", "good", "the price of bread in a small town"]
CONTEXT = "The quick brown fox jumps over the lazy dog while the rain falls on the plain."
QUESTION = "what jumps over the dog"
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    root = tmp_path_factory.mktemp("models")
    kinds: dict[str, dict[str, Any]] = {
        "tagger": {"head": "TokenClassification", "num_labels": 5},
        "answerer": {"head": "QuestionAnswering", "num_labels": 2},
        "classifier": {},
    }
    found = {}
    for name, options in kinds.items():
        checkpoint = build_checkpoint("bert", root / f"{name}-c", positions=64, **options)
        if name == "tagger":
            edit_json(checkpoint / "config.json", id2label={str(i): label for i, label in enumerate(LABELS)})
        found[name] = Path(convert(checkpoint, root / name, bits=32))
    return load_models(found)


@pytest.fixture(scope="module")
def server(models: dict[str, Model]) -> Iterator[Address]:
    pytest.importorskip("fastapi", reason="the server is not installed (extra 'serve')")
    with running(models) as address:
        yield address


def ok(answer: tuple[int, Any, Any]) -> Any:
    assert answer[0] == 200, answer[1]
    return answer[1]


def test_entities_over_http(server: Address, models: dict[str, Model]) -> None:
    tagger = models["tagger"]
    want = tagger.tag(TEXTS[0])
    assert want and ok(server.ask("POST", "/models/tagger", {"inputs": TEXTS[0]})) == want
    assert ok(server.ask("POST", "/", {"inputs": TEXTS, "model": "tagger"})) == tagger.tag(TEXTS)
    options = {"aggregation_strategy": "none", "ignore_labels": ["B-PER"]}
    got = ok(server.ask("POST", "/models/tagger", {"inputs": TEXTS[0], "parameters": options}))
    assert got == tagger.tag(TEXTS[0], "none", ["B-PER"])
    long = TEXTS[0] * 8
    got = ok(server.ask("POST", "/models/tagger", {"inputs": long, "parameters": {"stride": 9}}))
    assert got == tagger.tag(long, stride=9) and got[-1]["end"] > len(long) / 2


def test_answers_over_http(server: Address, models: dict[str, Model]) -> None:
    answerer, inputs = models["answerer"], {"question": QUESTION, "context": CONTEXT}
    assert ok(server.ask("POST", "/", {"inputs": inputs})) == answerer.answer(QUESTION, CONTEXT)
    options = {"top_k": 3, "max_answer_len": 4, "doc_stride": 5, "max_seq_len": 60, "handle_impossible_answer": True}
    got = ok(server.ask("POST", "/models/answerer", {"inputs": [inputs, inputs], "parameters": options}))
    want = answerer.answer(QUESTION, CONTEXT, 3, 4, 60, 5, handle_impossible_answer=True)
    assert got == [want, want] and len(want) == 3


def test_texts_of_several_requests_share_passes(server: Address, models: dict[str, Model]) -> None:
    want = [models["tagger"].tag(text, "none", ()) for text in TEXTS]
    body = {"parameters": {"aggregation_strategy": "none", "ignore_labels": []}}

    def ask(i: int) -> Any:
        return ok(server.ask("POST", "/models/tagger", {"inputs": TEXTS[i % 3], **body}))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(24))) == want * 8


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("/predict", {"inputs": "good", "model": "tagger"}, "model 'tagger' is for token_classification, which POST /"),
        ("/embed", {"inputs": "good", "model": "tagger"}, "is for token_classification"),
        ("/rerank", {"query": "a", "texts": ["b"], "model": "answerer"}, "is for question_answering"),
        ("/v1/embeddings", {"input": "a", "model": "answerer"}, "is for question_answering"),
        ("/v2/models/tagger/infer", {"inputs": []}, "is for token_classification"),
        ("/models/tagger", {"inputs": {"text": "a"}}, "inputs must be a text or a list of texts"),
        ("/models/tagger", {"inputs": "good", "top_k": 2}, "top_k: model 'tagger' is for token_classification"),
        ("/models/tagger", {"inputs": "good", "stride": 90}, "stride is 90"),
        ("/models/answerer", {"inputs": "good"}, "inputs must be an object with a text under 'question'"),
        ("/models/answerer", {"inputs": {"question": "a"}}, "a text under 'question' and one under 'context'"),
        ("/models/answerer", {"inputs": {"question": "a", "context": "b", "n": 1}}, "inputs.n=1"),
        ("/models/answerer", {"inputs": {"question": "a", "context": "b"}, "stride": 1}, "stride: model 'answerer'"),
        ("/models/answerer", {"inputs": {"question": "a", "context": "b"}, "top_k": 0}, "top_k"),
        (
            "/models/classifier",
            {"inputs": "a", "doc_stride": 3},
            "doc_stride: model 'classifier' is for classification",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(server: Address, path: str, body: dict, said: str) -> None:
    status, answer, _ = server.ask("POST", path, body)
    assert status in (400, 404, 413, 422) and said in str(answer)


def test_who_is_served(server: Address) -> None:
    kinds = [next(iter(ok(server.ask("GET", f"/info?model={n}"))["model_type"])) for n in ("tagger", "answerer")]
    assert kinds == ["token_classifier", "question_answerer"]


def test_the_hubs_client(server: Address, models: dict[str, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub", reason="the client is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # conftest.py has forbidden the hub
    with running({"m": models["tagger"]}) as address:
        got = hub.InferenceClient(model=address.url).token_classification(TEXTS[0], aggregation_strategy="max")
        want = models["tagger"].tag(TEXTS[0], "max")
        assert [(e.entity_group, e.score, e.word, e.start, e.end) for e in got] == [tuple(e.values()) for e in want]
    with running({"m": models["answerer"]}) as address:
        client = hub.InferenceClient(model=address.url)
        one = client.question_answering(question=QUESTION, context=CONTEXT)
        want = models["answerer"].answer(QUESTION, CONTEXT)
        assert {name: getattr(one, name) for name in want} == want
        many = client.question_answering(question=QUESTION, context=CONTEXT, top_k=2, max_answer_len=3)
        assert [a.answer for a in many] == [
            a["answer"] for a in models["answerer"].answer(QUESTION, CONTEXT, top_k=2, max_answer_len=3)
        ]


# -- the pipeline object ------------------------------------------------------------


def test_the_pipeline_of_entities(models: dict[str, Model]) -> None:
    tagger = models["tagger"]
    pipe = pipeline("ner", tagger)
    assert pipe(TEXTS[0]) == tagger.tag(TEXTS[0], "none") and pipe(TEXTS) == tagger.tag(TEXTS, "none")
    grouped = pipeline("token-classification", tagger, aggregation_strategy="simple", ignore_labels=[])
    assert grouped(TEXTS[0]) == tagger.tag(TEXTS[0], ignore_labels=())
    assert list(grouped(text for text in TEXTS)) == grouped(TEXTS)
    words = TEXTS[2].split()
    assert pipe(words, is_split_into_words=True) == tagger.tag(words, "none", is_split_into_words=True)
    assert pipe(TEXTS[0] * 9) and pipeline(None, tagger)(TEXTS[1]) == pipe(TEXTS[1])


def test_the_pipeline_of_answers(models: dict[str, Model]) -> None:
    answerer = models["answerer"]
    pipe = pipeline("question-answering", answerer)
    want = answerer.answer(QUESTION, CONTEXT)
    assert pipe(question=QUESTION, context=CONTEXT) == want
    assert pipe({"question": QUESTION, "context": CONTEXT}) == want
    assert pipe([{"question": QUESTION, "context": CONTEXT}] * 2) == [want, want]
    assert pipe(question=[QUESTION, "who"], context=CONTEXT)[0] == want
    many = pipe(question=QUESTION, context=CONTEXT, top_k=3, doc_stride=4, max_seq_len=50)
    assert many == answerer.answer(QUESTION, CONTEXT, 3, stride=4, max_length=50)


def test_pipelines_refuse_what_an_artifact_cannot_obey(models: dict[str, Model]) -> None:
    for task, name in (("text-classification", "tagger"), ("ner", "classifier"), ("question-answering", "tagger")):
        with pytest.raises(InputError, match=r"is for .*classification: use task"):
            pipeline(task, models[name])
    with pytest.raises(InputError, match="offset_mapping"):
        pipeline("ner", models["tagger"])("good", offset_mapping=[(0, 4)])
    with pytest.raises(InputError, match="aggregation is 'mean'"):
        pipeline("ner", models["tagger"], aggregation_strategy="mean")
    answers = pipeline("question-answering", models["answerer"])
    for given, said in (
        ({"question": "a"}, "give question="),
        ({"question": "a", "context": "b", "max_seq_len": 999}, "max_seq_len is 999"),
        ({"question": "a", "context": "b", "topk": 2, "top_k": 3}, "topk is 2 and top_k 3"),
        ({"question": "a", "context": "b", "padding": "max_length"}, "padding"),
    ):
        with pytest.raises(InputError, match=said):
            answers(**given)


def test_other_adapters_refuse_them(models: dict[str, Model], tmp_path: Path) -> None:
    from approxrt.serving.sentence_transformers import CrossEncoder, SentenceTransformer
    from approxrt.serving.triton import export

    for adapter in (CrossEncoder, SentenceTransformer):
        with pytest.raises(InputError, match=r"is for token_classification: use approxrt\.serving\.pipeline"):
            adapter(models["tagger"])
    with pytest.raises(UnsupportedTaskError, match="is for question_answering"):
        export(models["answerer"].path, tmp_path)
