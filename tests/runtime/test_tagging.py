"""`tag` beside transformers' own pipeline: the same words, labels and places, and scores but for float32's rounding.

Logits differ from transformers' by sums in another order (test_token_heads.py: below 2e-5 here); a softmax moves by no
more than twice that, and means of scores by no more again.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint
from originals import converted, edit_json

import approxrt
from approxrt.errors import InputError, TextTooLongError, TruncationWarning, UnsupportedTaskError
from approxrt.runtime.encoder_model import EncoderModel

transformers = pytest.importorskip("transformers", reason="compares with transformers")

CLOSE = 5e-5
LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TEXTS = [
    "She sold seashells; he bought 42 of them, and paid 3.50 for each!",
    "a gripping film   that unfolds",
    "good",
    "An honest account of wörk, weather\tand 東京 bread -- in a small town.",
]
WORDS = [["She", "sold", "seashells", ";", "unfolding"], ["good"], ["An", "honest", "wörk", "3.50"]]
AGGREGATIONS = ("none", "simple", "first", "average", "max")
FAMILIES = ("bert", "distilbert", "roberta", "electra", "xlm-roberta")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("taggers")
    for family in FAMILIES:
        checkpoint = build_checkpoint(family, root / family, head="TokenClassification", num_labels=5, positions=64)
        edit_json(checkpoint / "config.json", id2label={str(i): name for i, name in enumerate(LABELS)})
        if family == "roberta":
            # As models that are trained on words are saved: a space before each.
            data = json.loads((checkpoint / "tokenizer.json").read_text())
            data["pre_tokenizer"]["add_prefix_space"] = True
            (checkpoint / "tokenizer.json").write_text(json.dumps(data))
            edit_json(checkpoint / "tokenizer_config.json", add_prefix_space=True)
        converted(checkpoint)
    return root


def ours(folder: Path, family: str) -> EncoderModel:
    model = approxrt.load(folder / f"{family}.artifact", threads=1)
    assert isinstance(model, EncoderModel)
    return model


def theirs(folder: Path, family: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return transformers.pipeline("token-classification", str(folder / family), device="cpu", **options)


def assert_same(got: list[dict], want: list[dict]) -> None:
    assert [list(e) for e in got] == [list(e) for e in want]
    for a, b in zip(got, want, strict=True):
        assert {k: v for k, v in a.items() if k != "score"} == {k: v for k, v in b.items() if k != "score"}
        assert abs(a["score"] - float(b["score"])) <= CLOSE


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_pipeline(folder: Path, family: str) -> None:
    model, pipe, some = ours(folder, family), theirs(folder, family), 0
    for aggregation in AGGREGATIONS:
        wanted = pipe(TEXTS, aggregation_strategy=aggregation)
        found = model.tag(TEXTS, aggregation)
        some += sum(map(len, found))
        for got, want, text in zip(found, wanted, TEXTS, strict=True):
            assert_same(got, want)
            assert_same(model.tag(text, aggregation), want)
        words = pipe(WORDS, aggregation_strategy=aggregation, is_split_into_words=True)
        for got, want in zip(model.tag(WORDS, aggregation, is_split_into_words=True), words, strict=True):
            assert_same(got, want)
    assert some > 40, "a comparison of nothing shows nothing"


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("family", FAMILIES)
def test_long_texts_by_stride_equal_the_pipeline(folder: Path, family: str) -> None:
    long = " ".join(TEXTS) * 4
    model, pipe = ours(folder, family), theirs(folder, family)
    for aggregation in AGGREGATIONS[1:]:
        for stride in (0, 7, 40):
            want = pipe(long, aggregation_strategy=aggregation, stride=stride)
            got = model.tag(long, aggregation, stride=stride)
            assert_same(got, want)
            assert got[-1]["end"] > 3 * len(" ".join(TEXTS))
    assert_same(model.tag("good", stride=7), pipe("good", aggregation_strategy="simple", stride=7))


def test_ignored_labels_and_a_text_that_is_cut(folder: Path) -> None:
    model, pipe = ours(folder, "bert"), theirs(folder, "bert")
    want = pipe(TEXTS[0], aggregation_strategy="simple", ignore_labels=["PER"])
    assert_same(model.tag(TEXTS[0], ignore_labels=["PER"]), want)
    long = TEXTS[0] * 8
    with pytest.warns(TruncationWarning, match=r"1 of 1 texts were cut to 64 tokens"):
        assert_same(model.tag(long), pipe(long, aggregation_strategy="simple"))
    # What is not read is not looked at.
    roberta = ours(folder, "roberta")
    with pytest.warns(TruncationWarning):
        roberta.tag("good " * 80 + "<pad>")
    with pytest.raises(InputError, match="padding token '<pad>' inside"):
        roberta.tag("good " * 80 + "<pad>", stride=4)
    with pytest.raises(TextTooLongError, match="text 0 has more than 20 tokens"):
        model.tag(TEXTS[0], truncate=False, max_length=20)
    with pytest.warns(TruncationWarning, match="20 tokens"):
        assert model.tag(TEXTS[0], "none", (), max_length=20)[-1]["index"] == 18


def test_words_keep_their_labels_whatever_the_window(folder: Path) -> None:
    """A word's label is that of its first token; in windows that share much, where it has text on both sides."""
    model = ours(folder, "bert")
    from approxrt.runtime.tagging import TagOptions

    words = WORDS[0] * 3
    inputs = model.tagger.prepare([words], TagOptions(words=True))
    logits = model.forward_tokens(inputs.ids)
    (labels,) = model.tagger.word_labels(inputs, logits)
    ids = inputs.windows[0][0].word_ids
    assert labels == [LABELS[logits[0][ids.index(i)].argmax()] for i in range(len(words))]
    many = model.tagger.prepare([words * 9], TagOptions(words=True, stride=30))
    assert len(many.windows[0]) > 3
    (found,) = model.tagger.word_labels(many, model.forward_tokens(many.ids))
    assert len(found) == len(words) * 9 and set(found) <= set(LABELS)


def test_words_of_a_tokenizer_without_spaces_before_words_are_read_as_a_text(tmp_path: Path) -> None:
    """Byte-level tokens have their space in them: read one by one, all words would be one."""
    from approxrt.runtime.tagging import TagOptions

    checkpoint = build_checkpoint("roberta", tmp_path / "c", head="TokenClassification", num_labels=5, positions=64)
    model = converted(checkpoint)
    assert model.tag(WORDS[0], is_split_into_words=True) == model.tag(" ".join(WORDS[0]))
    inputs = model.tagger.prepare([WORDS[0]], TagOptions(words=True))
    text = inputs.sentences[0]
    for (start, end), word in zip(
        inputs.windows[0][0].offsets, model.tagger.word_ids(inputs, 0, inputs.windows[0][0]), strict=True
    ):
        if word is not None:
            assert text[start:end].strip() in WORDS[0][word]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"aggregation": "mean"}, "aggregation is 'mean'; it must be one of none, simple"),
        ({"stride": 62}, "stride is 62; it must be a number between 0 and 61: windows have 64 tokens, 2 of them"),
        ({"stride": 3, "aggregation": "none"}, "stride is 3 with aggregation='none'"),
        ({"max_length": 65}, "max_length is 65; it must be a number between 3 and 64"),
        ({"max_length": 2}, "max_length is 2; it must be a number between 3 and 64"),
        ({"ignore_labels": "O"}, "ignore_labels is 'O'; it must be a list"),
        ({"texts": " "}, "text 0 is empty"),
        ({"texts": []}, "batch is empty"),
        ({"texts": ["a", 3]}, "text 1 must be a str, got int"),
        ({"texts": "a b", "is_split_into_words": True}, "texts must be a list of words or a list of those, got str"),
        ({"texts": [["a"], "b"], "is_split_into_words": True}, "text 1 must be a list of words, got str"),
    ],
)
def test_what_cannot_be_tagged_is_named(folder: Path, options: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        ours(folder, "bert").tag(**{"texts": "good", **options})
    assert said in str(caught.value)


def test_other_models_say_what_they_do(folder: Path) -> None:
    model = ours(folder, "bert")
    for call in (model.classify, model.logits):
        with pytest.raises(UnsupportedTaskError, match="encoder for token_classification; use tag"):
            call("good")
    with pytest.raises(UnsupportedTaskError, match="use tag"):
        model.answer("who", "she")
    with pytest.raises(UnsupportedTaskError, match="use tag"):
        model.forward([[1, 2]])
    assert [row.shape for row in model.token_logits(["good", "good bad"])] == [(3, 5), (4, 5)]
    assert model.embed("good").shape == (1, 64) and np.isfinite(model.embed("good")).all()
