"""Token ids are compared with the embedding table by value: when an artifact is written, and when it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from artifact_edits import seal
from families import build_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from specs import random_tensors, small_spec
from tokenizers import AddedToken, processors

import approxrt
from approxrt.artifact.tokenizer import may_exceed, parse_tokenizer
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError


def sound(folder: Path) -> Path:
    tokenizer = build_tokenizer("bert")
    spec = small_spec(vocab_size=tokenizer.get_vocab_size())
    return write_artifact(folder, spec, random_tensors(spec), tokenizer.to_str().encode(), {})


def change_tokenizer(folder: Path, **changes: Any) -> bytes:
    data = json.loads((folder / "tokenizer.json").read_text())
    for name, value in changes.items():
        data["model"][name] = value
    raw = json.dumps(data).encode()
    (folder / "tokenizer.json").write_bytes(raw)
    seal(folder, "tokenizer.json")
    return raw


def test_an_id_beyond_the_table_is_refused_at_load_and_at_write(tmp_path: Path) -> None:
    """As many tokens as rows, so that a count says nothing."""
    path = sound(tmp_path / "a")
    vocabulary = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
    rows, (token, _) = len(vocabulary), max(vocabulary.items(), key=lambda item: item[1])
    raw = change_tokenizer(path, vocab={**vocabulary, token: 1000})
    with pytest.raises(ArtifactError) as caught:
        approxrt.load(path)
    assert f"tokenizer.json has ids up to 1000, the embedding table {rows} rows: {token!r} (id 1000) have none" in str(
        caught.value
    )
    spec = small_spec(vocab_size=rows)
    with pytest.raises(ArtifactError, match=r"not written: tokenizer\.json has ids up to 1000"):
        write_artifact(tmp_path / "b", spec, random_tensors(spec), raw, {})
    assert not (tmp_path / "b").exists()


def test_ids_around_every_text_are_compared(tmp_path: Path) -> None:
    tokenizer = build_tokenizer("bert")
    rows = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens([AddedToken("[END]", special=True)])
    end = tokenizer.token_to_id("[END]")
    assert end == rows
    parse_tokenizer(tokenizer.to_str().encode(), rows)  # an added token that no text needs
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [END]", pair="$A [END] $B [END]", special_tokens=[("[END]", end)]
    )
    with pytest.raises(
        ValueError,
        match=rf"puts the token '\[END\]' \(id {end}\) around every text, the embedding table has {rows} rows",
    ):
        parse_tokenizer(tokenizer.to_str().encode(), rows)
    parse_tokenizer(tokenizer.to_str().encode(), rows + 1)


def test_tokens_may_share_rows() -> None:
    data = json.loads(build_tokenizer("bert").to_str())
    vocabulary = data["model"]["vocab"]
    highest = max(vocabulary.values())
    data["model"]["vocab"] = {token: min(i, highest - 3) for token, i in vocabulary.items()}
    parse_tokenizer(json.dumps(data).encode(), highest - 2)
    with pytest.raises(ValueError, match=f"has ids up to {highest - 3}"):
        parse_tokenizer(json.dumps(data).encode(), highest - 3)


def test_padding_is_left_out() -> None:
    tokenizer = build_tokenizer("bert")
    tokenizer.enable_padding(length=64)
    assert len(parse_tokenizer(tokenizer.to_str().encode(), 10_000).encode("good").ids) < 64


@given(
    rows=st.integers(1, 1 << 22),
    ids=st.lists(st.integers(0, 1 << 24), max_size=5),
    space=st.sampled_from(["", " ", "\n\t"]),
)
def test_the_quick_look_misses_nothing(rows: int, ids: list[int], space: str) -> None:
    members = ",".join(f'"t{i}"{space}:{space}{i}' for i in ids)
    assert may_exceed(f'{{"vocab": {{{members}}}}}'.encode(), rows) == any(i >= rows for i in ids)


@pytest.mark.parametrize("rows", [9, 10, 29, 30, 99, 100, 200, 30522])
def test_the_quick_look_at_every_border(rows: int) -> None:
    for i in {0, 1, 9, 10, 11, 19, 20, 29, 30, 90, 99, 100, 101, 199, 200, 300, rows - 1, rows, rows + 1, 10 * rows}:
        assert may_exceed(f'{{"a": {i}}}'.encode(), rows) == (i >= rows), i
