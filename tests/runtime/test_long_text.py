"""Texts far over the limit are cut before they are tokenised, and the kept tokens are those of the whole text."""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
from families import CORPUS, build_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import random_tensors, small_spec
from tokenizers import AddedToken

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import write_artifact
from approxrt.runtime.long_text import LongTextCutter
from approxrt.runtime.tokenize import TextEncoder

LENGTH = 12
PIECES = [
    *(
        "word",
        "Good",
        "😀",
        "你好",
        "e\u0301",
        "  ",
        "\n",
        "\t\t",
        "[MASK]",
        "</s>",
        "a.b.c!?",
        "\u200b",
        "ﬁ",
        "_",
        "½",
    ),
    *("x" * 130, "anti" * 40, "й" * 70, "\U0001f1eb\U0001f1f7", "İ", "'s", "don't", "##a", "\u2581", "\x00", "12345"),
    *("two hours", "<mask>", " "),
]


def cutter_of(family: str, left: bool = False, length: int = LENGTH) -> tuple[Any, LongTextCutter]:
    """(a tokenizer that truncates to `length`, the cutter)."""
    whole, cutting = build_tokenizer(family), build_tokenizer(family)
    cutting.enable_truncation(length, strategy="longest_first", direction="left" if left else "right")
    return cutting, LongTextCutter(whole, length, left)


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
@settings(max_examples=30)
@given(seed=st.integers(0, 1 << 30))
def test_the_kept_tokens_are_the_whole_text_s(family: str, left: bool, seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choice(PIECES) * draw.choice([1, 1, 1, 8]) + draw.choice(["", " ", " "]) for _ in range(80))
    cutting, cutter = cutter_of(family, left)
    short = cutter.cut(text)
    assert cutting.encode(short).ids == cutting.encode(text).ids


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta"])
def test_ordinary_text_is_cut_to_a_small_part(family: str) -> None:
    text = " ".join(CORPUS) * 500
    for left in (False, True):
        cutting, cutter = cutter_of(family, left)
        assert len(cutter.cut(text)) < len(text) / 50
        assert cutting.encode(cutter.cut(text)).ids == cutting.encode(text).ids


def test_one_endless_word_is_one_unknown_token() -> None:
    cutting, cutter = cutter_of("bert")
    for text in (
        "й" * 5000 + "😀" * 5000,
        "你" * 5000,
        "x" * 100_000 + " good",
        "good " + "ab" * 50_000,
        " " * 100_000 + "good",
    ):
        assert len(cutter.cut(text)) < 600
        assert cutting.encode(cutter.cut(text)).ids == cutting.encode(text).ids


def test_an_added_word_of_letters_keeps_endless_words_whole() -> None:
    """It could stand inside of one."""
    tokenizer = build_tokenizer("bert")
    tokenizer.add_tokens([AddedToken("xyx", normalized=False)])
    text = "x" * 5000 + "xyx" + "x" * 5000
    assert LongTextCutter(tokenizer, LENGTH, False).cut(text) == text


def test_a_tokenizer_without_words_reads_all() -> None:
    tokenizer = build_tokenizer("roberta")
    tokenizer.pre_tokenizer = None
    assert LongTextCutter(tokenizer, LENGTH, False).cut("good " * 5000) == "good " * 5000


@pytest.mark.parametrize("length", [12, 13])
@pytest.mark.parametrize("side", ["right", "left"])
def test_pairs(tmp_path: Any, length: int, side: str) -> None:
    """Where an odd token goes depends on which text is the longer: that must not change."""
    tokenizer = build_tokenizer("bert")
    spec = small_spec(vocab_size=tokenizer.get_vocab_size(), max_positions=64, max_length=length)
    path = write_artifact(tmp_path / "a", spec, random_tensors(spec), tokenizer.to_str().encode(), {})
    encoder = TextEncoder(read_artifact(path))
    tokenizer.enable_truncation(length, strategy="longest_first", direction=side)
    # Not much longer: a tokenizer that keeps what it cuts off pairs each piece of one text with each of the other.
    parts = ["good", "bad " * 30, "great " * 60, "a b c " * 100, "fine " * 310, "x" * 900, ""]
    for first in parts:
        for second in parts:
            ours = encoder.encode((first, second), truncation_side=side)
            assert ours.ids == [tokenizer.encode(first, second).ids]
            assert ours.truncated == [bool(tokenizer.encode(first, second).overflowing)]


def test_five_megabytes_take_no_longer_than_a_page(tmp_path: Any) -> None:
    """Far below what tokenising takes, which is seconds; the bound has room for a busy machine."""
    tokenizer = build_tokenizer("bert")
    spec = small_spec(vocab_size=tokenizer.get_vocab_size(), max_positions=512, max_length=512)
    path = write_artifact(tmp_path / "a", spec, random_tensors(spec), tokenizer.to_str().encode(), {})
    encoder = TextEncoder(read_artifact(path))
    text = "good bad " * 560_000
    encoder.encode(text)
    begin = time.process_time()
    encoder.encode(text)
    assert time.process_time() - begin < 0.5
