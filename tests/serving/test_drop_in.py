"""Objects in place of transformers' and sentence-transformers' own: every keyword is obeyed or refused by its name."""

from __future__ import annotations

import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("transformers", reason="the original")

import torch
import transformers

import approxrt
from approxrt.conversion import convert
from approxrt.errors import InputError
from approxrt.runtime.model import Model
from approxrt.serving.pipeline import pipeline
from approxrt.serving.sentence_transformers import CrossEncoder, SentenceTransformer
from approxrt.serving.similarity import similarity, similarity_pairwise

TEXTS = ["a good film", "two hours that nobody will get back", "rain"]
LONG = "a good film " * 40
PAIR = {"text": TEXTS[0], "text_pair": TEXTS[1]}
CLOSE = {"rtol": 0, "atol": 5e-5}  # float32 products in another order


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints and float32 artifacts (NAME.f32) of a classifier, models of one output, and an embedder."""
    root = tmp_path_factory.mktemp("models")
    kinds: dict[str, dict[str, Any]] = {
        "classifier": {"num_labels": 3},
        "several": {"num_labels": 3, "problem_type": "multi_label_classification"},
        "score": {"num_labels": 1, "problem_type": "regression"},
        "one": {"num_labels": 1},
        "embedder": {"plain": True, "pooling": "mean", "normalize": False},
    }
    for name, options in kinds.items():
        checkpoint = build_checkpoint("bert", root / name, positions=64, seed=len(name), **options)
        if name == "embedder":
            prompts = {"query": "the price of ", "passage": "an account of "}
            config = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "dot"}
            (checkpoint / "config_sentence_transformers.json").write_text(json.dumps(config))
        if name == "one":
            config = json.loads((checkpoint / "config.json").read_text())
            assert "problem_type" not in config or config.pop("problem_type") is None
            (checkpoint / "config.json").write_text(json.dumps(config))
        convert(checkpoint, root / f"{name}.f32", bits=32)
    return root


def original(folder: Path, name: str, task: str = "text-classification", **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.pipeline(task, model=str(folder / name), device="cpu", **options)


def same(got: Any, want: Any) -> None:
    """The same structure and labels; scores within the rounding of float32."""
    assert type(got) is type(want), (got, want)
    if isinstance(got, dict):
        assert got.keys() == want.keys()
        for key in got:
            same(got[key], want[key])
    elif isinstance(got, list):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            same(a, b)
    elif isinstance(got, float):
        assert got == pytest.approx(want, abs=5e-5)
    else:
        assert got == want


# -- pipeline -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classifier", "several", "score", "one"])
def test_text_classification(folder: Path, name: str) -> None:
    theirs, ours = original(folder, name), pipeline("text-classification", folder / f"{name}.f32")
    for inputs in (TEXTS[0], TEXTS, [TEXTS[0]], PAIR, [PAIR, {"text": "rain"}]):
        for options in ({}, {"top_k": 1}, {"top_k": 2}, {"top_k": None}, {"function_to_apply": "none"}):
            same(ours(inputs, **options), theirs(inputs, **options))
    same(ours(TEXTS[0], function_to_apply="SIGMOID"), theirs(TEXTS[0], function_to_apply="SIGMOID"))
    same(list(ours(text for text in TEXTS)), list(theirs(text for text in TEXTS)))


def test_options_of_every_call(folder: Path) -> None:
    for options in ({"top_k": 1}, {"top_k": 2}, {"top_k": None, "function_to_apply": "sigmoid"}):
        theirs, ours = original(folder, "classifier", **options), pipeline(None, folder / "classifier.f32", **options)
        for inputs in (TEXTS[0], TEXTS):
            same(ours(inputs), theirs(inputs))
            same(ours(inputs, top_k=1), theirs(inputs, top_k=1))


# What a call may be given. (value, whether transformers takes it, too)
CALLS: dict[str, list[Any]] = {
    "truncation": [True, "longest_first"],
    "max_length": [5, 12],
    "batch_size": [1, 8],
    "num_workers": [0],
    "padding": [True, "longest", False],
    "top_k": [1, 2, None],
    "function_to_apply": ["none", "sigmoid", "softmax"],
    "add_special_tokens": [True],
}
REFUSED_CALLS: dict[str, list[Any]] = {
    "truncation": ["only_second", 5],
    "max_length": [0, 1000, "5"],
    "batch_size": [0, "8"],
    "top_k": [0, -1, "2"],
    "function_to_apply": ["tanh", 3],
    "padding": ["left"],
    "add_special_tokens": [False],
    "stride": [3],
    "return_all_scores": [True],
    "anything": [1],
}


@pytest.mark.parametrize("name", CALLS)
def test_calls_that_are_obeyed(folder: Path, name: str) -> None:
    theirs, ours = original(folder, "classifier"), pipeline("text-classification", folder / "classifier.f32")
    for value in CALLS[name]:
        options = {name: value, **({"truncation": True} if name == "max_length" else {})}
        for inputs in (TEXTS[1], TEXTS):
            same(ours(inputs, **options), theirs(inputs, **options))


@pytest.mark.parametrize("name", REFUSED_CALLS)
def test_calls_that_are_refused(folder: Path, name: str) -> None:
    ours = pipeline("text-classification", folder / "classifier.f32")
    for value in REFUSED_CALLS[name]:
        with pytest.raises(InputError, match=name):
            ours(TEXTS[0], **{name: value})
        with pytest.raises(InputError, match=name):
            # At the earliest step, where that is the construction.
            pipeline("text-classification", folder / "classifier.f32", **{name: value})(TEXTS[0])


def test_cuts(folder: Path) -> None:
    theirs, ours = original(folder, "classifier"), pipeline("text-classification", folder / "classifier.f32")
    same(ours(LONG, truncation=True), theirs(LONG, truncation=True))
    same(ours(LONG, truncation=True, max_length=9), theirs(LONG, truncation=True, max_length=9))
    with pytest.raises(InputError, match="the limit is 64"):
        ours(LONG, truncation=False)
    with pytest.raises(InputError, match="inputs are 5"):
        ours(5)
    with pytest.raises(InputError, match="keys more"):
        ours({"text": "a", "more": "b"})


# Of transformers.pipeline: values that change nothing, and values that are refused.
ARGUMENTS: dict[str, tuple[list[Any], list[Any]]] = {
    "task": (["text-classification", "sentiment-analysis", None], ["summarization"]),
    "model": ([], [None]),
    "config": ([None], ["x"]),
    "tokenizer": ([None], ["x"]),
    "feature_extractor": ([None], ["x"]),
    "image_processor": ([None], ["x"]),
    "video_processor": ([None], ["x"]),
    "processor": ([None], ["x"]),
    "revision": ([None], ["main"]),
    "use_fast": ([True, False], []),
    "token": ([None, True, "x"], []),
    "device": ([None, -1, "cpu", torch.device("cpu")], ["mps", 3]),
    "device_map": ([None], ["auto"]),
    "dtype": (["auto", None, "float32", torch.float32], ["float16", torch.bfloat16]),
    "trust_remote_code": ([None, True, False], []),
    "model_kwargs": ([None, {}], [{"a": 1}]),
    "pipeline_class": ([None], [str]),
}


def test_every_argument_of_the_original_is_known() -> None:
    """In the same order, so that positions mean the same; options of one's own have names."""
    theirs = [p for p in inspect.signature(transformers.pipeline).parameters.values() if p.kind is not p.VAR_KEYWORD]
    ours = list(inspect.signature(pipeline).parameters.values())
    assert [p.name for p in theirs] == [p.name for p in ours[: len(theirs)]] == list(ARGUMENTS)
    assert [p.default for p in theirs] == [p.default for p in ours[: len(theirs)]]


@pytest.mark.parametrize("name", ARGUMENTS)
def test_arguments_of_pipeline(folder: Path, name: str) -> None:
    artifact = folder / "classifier.f32"
    want = pipeline("text-classification", artifact)(TEXTS)
    accepted, refused = ARGUMENTS[name]
    for value in accepted:
        given = {"task": "text-classification", "model": artifact} | {name: value}
        assert pipeline(**given)(TEXTS) == want
    for value in refused:
        given = {"task": "text-classification", "model": artifact} | {name: value}
        with pytest.raises(InputError, match="artifact" if name == "model" else name):
            pipeline(**given)


def test_a_tokenizer_that_is_the_artifacts_own(folder: Path) -> None:
    artifact = str(folder / "classifier.f32")
    assert pipeline("text-classification", artifact, tokenizer=artifact)("rain")
    assert pipeline("text-classification", model=artifact, framework="pt", torch_dtype="auto")("rain")


def test_a_loaded_model_stays_where_it_is(folder: Path) -> None:
    model = approxrt.load(folder / "classifier.f32", device="cpu")
    assert pipeline(model=model, device="cpu")("rain") == pipeline(model=model)("rain")
    with pytest.raises(InputError, match="the model was loaded on cpu"):
        pipeline(model=model, device=0)
    with pytest.raises(InputError, match="threads is 2"):
        pipeline(model=model, threads=2)


def test_feature_extraction(folder: Path) -> None:
    theirs = original(folder, "embedder", "feature-extraction")
    ours = pipeline(None, folder / "embedder.f32")
    for inputs in (TEXTS[0], TEXTS):
        got, want = ours(inputs), theirs(inputs)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-4)
    assert type(ours(TEXTS[0], return_tensors=True)) is torch.Tensor
    for options in ({"truncation": True}, {"tokenize_kwargs": {"truncation": True, "max_length": 7}}):
        got, want = ours(LONG, **options), theirs(LONG, **options)
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)
    for options in ({"max_length": 7}, {"anything": 1}, {"tokenize_kwargs": {"stride": 2}}):
        with pytest.raises(InputError, match=next(iter(options.get("tokenize_kwargs", options)))):
            ours(LONG, **options)
    with pytest.raises(InputError, match="given twice"):
        ours(LONG, truncation=True, tokenize_kwargs={"truncation": True})


# -- SentenceTransformer, beside the model itself -----------------------------------


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Model:
    return approxrt.load(folder / "embedder.f32", device="cpu", threads=1)


def test_prompts(embedder: Model) -> None:
    ours = SentenceTransformer(embedder)
    plain, query = ours.encode(TEXTS), embedder.embed(TEXTS, normalize=False, prompt="the price of ")
    np.testing.assert_array_equal(plain, embedder.embed(TEXTS, normalize=False, prompt=""))
    # The second argument by position is a prompt's name, the third a prompt.
    np.testing.assert_array_equal(ours.encode(TEXTS, "query"), query)
    np.testing.assert_array_equal(ours.encode(TEXTS, None, "the price of "), query)
    np.testing.assert_array_equal(ours.encode_query(TEXTS), query)
    # As in the original, "document" is always there, without a prompt of its own.
    np.testing.assert_array_equal(ours.encode_document(TEXTS), plain)
    np.testing.assert_array_equal(ours.encode_query(TEXTS, prompt="an account of "), ours.encode(TEXTS, "passage"))
    with pytest.raises(
        InputError, match=r"prompt_name is 'other'; this model's prompts: 'query', 'document', 'passage'"
    ):
        ours.encode(TEXTS, prompt_name="other")
    with pytest.raises(InputError, match="prompt_name is 32"):
        ours.encode(TEXTS, 32)
    given = SentenceTransformer(embedder, prompts={"query": ""}, default_prompt_name="passage")
    np.testing.assert_array_equal(given.encode_query(TEXTS), plain)
    np.testing.assert_array_equal(given.encode(TEXTS), ours.encode(TEXTS, "passage"))
    with pytest.raises(InputError, match="default_prompt_name is 'other'"):
        SentenceTransformer(embedder, default_prompt_name="other")


def test_inputs_of_every_sort(embedder: Model) -> None:
    ours = SentenceTransformer(embedder)
    want = ours.encode(TEXTS)
    for inputs in (np.array(TEXTS), np.array(TEXTS, dtype=object), tuple(TEXTS), (text for text in TEXTS)):
        np.testing.assert_array_equal(ours.encode(inputs), want)
    np.testing.assert_array_equal(ours.encode(sentences=TEXTS), want)
    np.testing.assert_array_equal(ours.encode(np.str_(TEXTS[0])), want[0])
    assert ours.encode([]).shape == (0,)
    for inputs in (5, None, {"text": "a"}, b"a", [5]):
        with pytest.raises(InputError):
            ours.encode(inputs)
    tensors = ours.encode(TEXTS, convert_to_numpy=False)
    assert isinstance(tensors, list) and all(isinstance(row, torch.Tensor) for row in tensors)


def test_dimensions_and_length(embedder: Model) -> None:
    ours = SentenceTransformer(embedder, truncate_dim=8)
    whole = embedder.embed(TEXTS, normalize=False)
    np.testing.assert_array_equal(ours.encode(TEXTS), whole[:, :8])
    assert ours.get_embedding_dimension() == ours.get_sentence_embedding_dimension() == 8
    np.testing.assert_array_equal(ours.encode(TEXTS, truncate_dim=5), whole[:, :5])
    np.testing.assert_array_equal(SentenceTransformer(embedder, truncate_dim=1000).encode(TEXTS), whole)
    with ours.truncate_embeddings(3):
        assert ours.encode(TEXTS).shape == (3, 3)
    assert ours.truncate_dim == 8
    ours = SentenceTransformer(embedder)
    assert ours.max_seq_length == ours.get_max_seq_length() == 64
    ours.max_seq_length = 6
    encoded = embedder.encode([LONG], max_length=6)
    assert len(encoded.ids[0]) == 6
    np.testing.assert_array_equal(ours.encode(LONG), embedder.pooled(encoded)[0])
    assert embedder.encode([LONG]).ids != encoded.ids  # the model itself is left alone
    for value in (0, 65, None, 2.5, True):
        with pytest.raises(InputError, match="max_seq_length is"):
            ours.max_seq_length = value  # type: ignore[assignment]


def test_similarities(embedder: Model) -> None:
    a, b = SentenceTransformer(embedder).encode(TEXTS), SentenceTransformer(embedder).encode(TEXTS[:2])
    difference = a[:, None, :] - b[None, :, :]
    want = {
        "dot": a @ b.T,
        "cosine": (a @ b.T) / (np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)[None]),
        "euclidean": -np.sqrt((difference**2).sum(2)),
        "manhattan": -np.abs(difference).sum(2),
    }
    for name, values in want.items():
        np.testing.assert_allclose(similarity(name, a, b), values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(similarity_pairwise(name, a[:2], b), np.diag(values[:2]), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(similarity(name, a[0], list(b)), values[:1], rtol=1e-4, atol=1e-5)
    # The artifact's own, unless another is given.
    ours = SentenceTransformer(embedder)
    assert ours.similarity_fn_name == "dot"
    np.testing.assert_array_equal(ours.similarity(a, b), similarity("dot", a, b))
    ours.similarity_fn_name = "manhattan"
    np.testing.assert_array_equal(ours.similarity_pairwise(a, a), similarity_pairwise("manhattan", a, a))
    assert SentenceTransformer(embedder, similarity_fn_name="cosine").similarity_fn_name == "cosine"
    with pytest.raises(InputError, match="similarity_fn_name is 'maxsim'"):
        SentenceTransformer(embedder, similarity_fn_name="maxsim")
    with pytest.raises(InputError, match="cannot be compared pair by pair"):
        ours.similarity_pairwise(a, b)


# -- CrossEncoder, beside the model itself ------------------------------------------


def test_activations(folder: Path) -> None:
    pairs = [("a film", text) for text in TEXTS]
    config = folder / "score" / "config.json"
    content = json.loads(config.read_text())
    raw = approxrt.load(folder / "score.f32").logits(pairs)[:, 0].astype(float)
    sigmoid = 1 / (1 + np.exp(-raw))
    np.testing.assert_allclose(CrossEncoder(folder / "score.f32").predict(pairs), sigmoid, rtol=1e-5)
    named = content | {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    config.write_text(json.dumps(named))
    try:
        identity = convert(folder / "score", folder / "score.identity", bits=32)
    finally:
        config.write_text(json.dumps(content))
    ours = CrossEncoder(identity)
    np.testing.assert_allclose(ours.predict(pairs), raw, rtol=1e-5)
    scores = [item["score"] for item in ours.rank("a film", TEXTS)]
    np.testing.assert_allclose(scores, sorted(raw, reverse=True), rtol=1e-5)
    # A call's own comes first, then the object's.
    np.testing.assert_allclose(ours.predict(pairs, activation_fn=torch.nn.Tanh()), np.tanh(raw), rtol=1e-5)
    given = CrossEncoder(identity, activation_fn=torch.nn.Sigmoid())
    np.testing.assert_allclose(given.predict(pairs), sigmoid, rtol=1e-5)
    older = CrossEncoder(identity, default_activation_function=torch.nn.Sigmoid())
    np.testing.assert_allclose(older.predict(sentences=pairs), sigmoid, rtol=1e-5)
    np.testing.assert_allclose(ours.predict(pairs, activation_fct=torch.nn.Sigmoid()), sigmoid, rtol=1e-5)


def test_pairs_of_every_sort(folder: Path) -> None:
    ours = CrossEncoder(folder / "score.f32", max_length=20)
    assert ours.max_length == ours.max_seq_length == 20 and ours.num_labels == 1
    pairs = [["a film", text] for text in TEXTS]
    want = ours.predict(pairs)
    for inputs in (np.array(pairs), np.array(pairs, dtype=object), tuple(map(tuple, pairs)), iter(pairs)):
        np.testing.assert_array_equal(ours.predict(inputs), want)
    for inputs in (pairs[0], tuple(pairs[0]), np.array(pairs[0])):
        assert ours.predict(inputs) == want[0]
    assert ours.predict([]).shape == (0,)
    np.testing.assert_array_equal(ours.predict(pairs, num_workers=0, batch_size=1), want)
    assert ours.rank("a film", np.array(TEXTS), batch_size=8, num_workers=2)[0]["score"] == want.max()
    assert len(ours.rank("a film", TEXTS, top_k=2)) == 2
    for inputs, message in ((TEXTS, "flat list of 3"), (None, "inputs is None"), (5, "inputs are 5")):
        with pytest.raises(InputError, match=message):
            ours.predict(inputs)
    with pytest.raises(InputError, match="num_labels is 3"):
        CrossEncoder(folder / "score.f32", num_labels=3)
    with pytest.raises(InputError, match="max_seq_length is 1000"):
        CrossEncoder(folder / "score.f32", max_length=1000)
