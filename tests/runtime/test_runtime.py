"""The public object: answers, truncation, and every wrong call with its clear error."""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from families import build_tokenizer
from specs import random_tensors, small_spec
from tokenizers import Tokenizer

import approxrt
from approxrt.artifact.spec.encoder import HeadSpec, ModelSpec
from approxrt.artifact.writer import write_artifact
from approxrt.errors import (
    ArtifactError,
    DeviceError,
    InputError,
    TextTooLongError,
    TruncationWarning,
    UnsupportedTaskError,
)

LONG = "the film was good and the play was bad " * 40


def make(tmp_path: Path, name: str = "m", **options) -> approxrt.Model:
    tokenizer = build_tokenizer("bert")
    fields = {"vocab_size": tokenizer.get_vocab_size(), "max_positions": 64, "max_length": 24, **options}
    spec: ModelSpec = small_spec(**fields)
    return approxrt.load(
        write_artifact(tmp_path / name, spec, random_tensors(spec), tokenizer.to_str().encode(), {}), threads=2
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> approxrt.Model:
    return make(tmp_path_factory.mktemp("model"))


def test_classify_one_and_many(model: approxrt.Model) -> None:
    one = model.classify("a good film")
    assert isinstance(one[0], approxrt.Prediction)
    many = model.classify(["a good film", ("a good film", "a bad one")], top_k=2)
    assert many[0][0] == one[0]
    assert [p.label for p in many[0]] in (["no", "yes"], ["yes", "no"])
    assert sum(p.score for p in many[1]) == pytest.approx(1)
    assert many[0][0].score >= many[0][1].score
    assert len(model.classify("a", top_k=9)) == 2


def test_classify_agrees_with_logits(model: approxrt.Model) -> None:
    texts = ["a good film", "", "bad", "the play"]
    logits = model.logits(texts)
    assert logits.shape == (4, 2)
    assert logits.dtype == np.float32
    assert [model.labels[i] for i in logits.argmax(1)] == [p[0].label for p in model.classify(texts)]


def test_a_batch_is_its_single_calls(model: approxrt.Model) -> None:
    texts = ["a good film", "bad", "the play was good and the film was bad", ""]
    together = model.logits(texts)
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(together[i], model.logits(text)[0])


def test_forward_takes_ids(model: approxrt.Model) -> None:
    encoded = model._text.encode("a good film")
    np.testing.assert_array_equal(model.forward(encoded.ids), model.logits("a good film"))
    np.testing.assert_array_equal(model.forward(np.array(encoded.ids)), model.logits("a good film"))


def test_embed(tmp_path: Path) -> None:
    model = make(tmp_path, labels=(), task_type="embedding", head=HeadSpec(pooling="mean"))
    vectors = model.embed(["a good film", "bad"])
    assert vectors.shape == (2, 40)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    raw = model.embed(["a good film", "bad"], normalize=False)
    np.testing.assert_allclose(raw / np.linalg.norm(raw, axis=1, keepdims=True), vectors, rtol=1e-6)
    np.testing.assert_array_equal(model.forward(model._text.encode("bad").ids), raw[1:])
    with pytest.raises(UnsupportedTaskError, match=r"classify.*embedding.*use embed"):
        model.classify("x")


def test_regression_and_multi_label(tmp_path: Path) -> None:
    regression = make(tmp_path, "r", labels=("score",), task_type="regression")
    (answer,) = regression.classify("a good film")
    assert answer.label == "score"
    assert answer.score == pytest.approx(float(regression.logits("a good film")[0, 0]))
    several = make(tmp_path, "s", labels=("a", "b", "c"), task_type="multi_label")
    answers = several.classify("a good film", top_k=3)
    logits = several.logits("a good film")[0]
    expected = {label: 1 / (1 + np.exp(-float(x))) for label, x in zip("abc", logits, strict=True)}
    assert {p.label: p.score for p in answers} == pytest.approx(expected)


# -- truncation --------------------------------------------------------------


def test_truncation_on_tells(model: approxrt.Model) -> None:
    long, short = model.classify([LONG, "a good film"])
    assert long[0].truncated
    assert not short[0].truncated
    with pytest.warns(TruncationWarning, match=r"1 of 2 texts were cut to 24 tokens \(index 1\)"):
        model.logits(["short", LONG])
    with pytest.warns(TruncationWarning):
        model.embed(LONG)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.logits("short")


def test_truncation_keeps_the_start_and_the_specials(model: approxrt.Model) -> None:
    ids = model._text.encode(LONG).ids[0]
    whole = Tokenizer.from_file(str(model.path / "tokenizer.json"))
    whole.no_truncation()
    full = whole.encode(LONG).ids
    assert len(ids) == 24
    assert ids[:-1] == full[:23]
    assert ids[-1] == full[-1]


def test_threads_do_not_share_a_truncation(model: approxrt.Model) -> None:
    def cut(i: int) -> bool:
        if i % 2:
            return len(model.encode(LONG).ids[0]) == 24
        with pytest.raises(TextTooLongError):
            model.encode(LONG, truncate=False)
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(cut, range(64)))


def test_truncation_off_refuses(model: approxrt.Model) -> None:
    for method in (model.classify, model.logits, model.embed):
        with pytest.raises(TextTooLongError, match=r"text 1 has \d+ tokens, the limit is 24.*truncate=True"):
            method(["short", LONG], truncate=False)
    # the policy of one call does not leak into the next
    assert model.classify(LONG)[0].truncated


# -- wrong calls -------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "the batch is empty"),
        (None, "NoneType"),
        (b"bytes", "bytes"),
        (7, "int"),
        ({"a": 1}, "dict"),
        (["a", 3], "text 1 must be a str or a pair of str, got int"),
        ([("a", "b", "c")], "text 0 must be a str or a pair"),
        ([("a", None)], "text 0 must be a str or a pair"),
    ],
    ids=str,
)
def test_bad_texts(model: approxrt.Model, texts: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.classify(texts)  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "1", True])
def test_bad_top_k(model: approxrt.Model, top_k: object) -> None:
    with pytest.raises(InputError, match="top_k"):
        model.classify("a", top_k=top_k)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "the batch is empty"),
        ([[]], "sequence 0 is empty"),
        ([[1, 2], []], "sequence 1 is empty"),
        ([[5, 10**6]], r"sequence 0 has token id 1000000; the vocabulary has ids 0 to \d+"),
        ([[5], [-3, 2]], "sequence 1 has token id -3"),
        ([[1] * 65], "sequence 0 has 65 tokens; the model has positions for 64"),
        ([[1.5, 2.0]], "flat list of integers"),
        ([["a"]], "flat list of integers"),
        ([[[1]]], "flat list of integers"),
        ([1, 2, 3], "list of lists"),
        ("abc", "list of lists"),
        ([[2**40]], "do not fit 32 bits"),
        ([[1, None]], "flat list of integers"),
    ],
    ids=lambda v: str(v)[:30],
)
def test_bad_ids(model: approxrt.Model, ids: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.forward(ids)  # type: ignore[arg-type]
    assert len(model.classify("still alive")) == 1


def test_bad_token_types(model: approxrt.Model) -> None:
    with pytest.raises(InputError, match="2 token ids and 1 token types"):
        model.forward([[1, 2]], [[0]])
    with pytest.raises(InputError, match="token type 2; the model has types 0 to 1"):
        model.forward([[1, 2]], [[0, 2]])
    with pytest.raises(InputError, match="1 lists of token types for 2 sequences"):
        model.forward([[1], [2]], [[0]])


def test_pairs_and_single_texts(tmp_path: Path) -> None:
    single = make(tmp_path, "single", inputs="single")
    with pytest.raises(UnsupportedTaskError, match="text 1 is a pair; this model takes single texts"):
        single.classify(["a", ("a", "b")])
    pair = make(tmp_path, "pair", inputs="pair")
    with pytest.raises(UnsupportedTaskError, match="text 0 is one text; this model takes pairs"):
        pair.classify("a")
    assert len(pair.classify(("a", "b"))) == 1


def test_generate_on_an_encoder(model: approxrt.Model) -> None:
    with pytest.raises(UnsupportedTaskError, match=r"generate.*use classify"):
        model.generate("once upon a time")


def test_load_refuses(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        approxrt.load(tmp_path / "nowhere")
    with pytest.raises(DeviceError, match="unknown device 'tpu'"):
        approxrt.load(tmp_path, device="tpu")
    with pytest.raises(DeviceError, match=r"cuda.*device='cpu'"):
        approxrt.load(tmp_path, device="cuda")
    with pytest.raises(InputError, match="threads=0"):
        make(tmp_path)
        approxrt.load(tmp_path / "m", threads=0)


def test_tokenizer_larger_than_the_table(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"tokenizer.json has ids up to \d+, the embedding table 7 rows"):
        make(tmp_path, vocab_size=7)


def test_info(model: approxrt.Model) -> None:
    info = model.info
    assert info["device"] == "cpu"
    assert info["threads"] == 2
    assert info["isa"] == (os.environ.get("APPROXRT_ISA") or approxrt._C.detected_isa())
    assert info["density"] == 1.0
    assert info["mac_share"]["s8"] == 1.0
    assert info["bytes"]["total"] == sum(f.stat().st_size for f in model.path.iterdir())
