"""Token ids of many texts: held in one array, and the same whatever is tokenised at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import build_checkpoint
from hypothesis import given
from hypothesis import strategies as st

from approxrt.errors import DataError
from approxrt.models.checkpoint import load_checkpoint
from approxrt.tasks import examples
from approxrt.tasks.examples import TokenLists, encode
from approxrt.tasks.readers import Dataset

ROWS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=6), max_size=6)


@given(ROWS, ROWS)
def test_lists_are_what_was_put_in(rows: list[list[int]], others: list[list[int]]) -> None:
    held = TokenLists(rows)
    assert list(held) == rows and len(held) == len(rows)
    assert held.lengths.tolist() == [len(row) for row in rows]
    assert held[1:] == rows[1:] and held[::-1] == rows[::-1]
    assert list(TokenLists.joined([held, TokenLists(others), TokenLists()])) == rows + others
    if rows:
        assert held[-1] == rows[-1] and held[np.int64(0)] == rows[0]
    with pytest.raises(IndexError):
        held[len(rows)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return load_checkpoint(build_checkpoint("bert", tmp_path_factory.mktemp("bert"))).tokenizer_json


def test_texts_that_are_tokenised_apart(tokenizer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [(f"word {i} and " * (i % 5), f"pair {i}") for i in range(11)]
    dataset = Dataset(texts, np.arange(11), tuple("abcdefghijk"))  # type: ignore[arg-type]
    whole = encode(dataset, tokenizer, 12)
    monkeypatch.setattr(examples, "BATCH", 3)
    apart = encode(dataset, tokenizer, 12)
    assert list(apart.ids) == list(whole.ids) and list(apart.types) == list(whole.types)
    assert max(apart.lengths) == 12 and max(map(max, apart.types)) == 1
    some = apart.subset(np.array([7, 2]))
    assert list(some.ids) == [whole.ids[7], whole.ids[2]] and some.lengths.tolist() == [len(row) for row in some.ids]


def test_a_text_without_tokens_is_named(tokenizer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    bare = json.loads(tokenizer)
    bare["post_processor"] = None  # no special tokens: an empty text has none at all
    monkeypatch.setattr(examples, "BATCH", 2)
    dataset = Dataset(["a", "b", "c", " ", "e"], np.zeros(5), None)
    with pytest.raises(DataError, match=r"example 4 gives no tokens: ' '"):
        encode(dataset, json.dumps(bare).encode(), 12)
