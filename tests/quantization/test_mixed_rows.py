"""Embedding tables of two bits with rows of four, and int8 positions: rounding, refusals, the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_edits import CARD, edit_config, edit_tensors, replace_tensor, set_value
from decoders import small_decoder_spec
from hypothesis import given
from hypothesis import strategies as st
from levels import every_level
from specs import TOKENIZER_JSON, random_tensors, small_spec

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.decoder_schema import decoder_faults
from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.spec.formats import MAX_ROW_GROUP_SCALE
from approxrt.artifact.storage.mixed_rows import dequantize_mixed, mixed_integers
from approxrt.artifact.tensors import tensor_faults
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError, InputError
from approxrt.quantization.int4 import quantize_rows4
from approxrt.quantization.mixed_rows import frequent_rows, quantize_mixed, quantize_rows2
from approxrt.runtime.cpu.engine import CpuEngine
from approxrt.torch_models.encoder import dequantized
from approxrt.vocabulary.prune import PrunedVocabulary, apply_vocabulary, trim_positions

WORD = "embeddings.word"


def mixed_spec(wide: int = 7, **changes: Any) -> ModelSpec:
    return small_spec(**{"embedding_kind": "s2", "wide_words": wide, "position_kind": "s8", **changes})


def two_bits(words: np.ndarray) -> np.ndarray:
    return dequantize_mixed(quantize_mixed(words, np.zeros(0, np.int64)), words.shape[1])


def test_two_bits_lose_what_four_levels_must() -> None:
    words = np.random.default_rng(0).standard_normal((200, 384)).astype(np.float32)
    lost = np.square(two_bits(words) - words).sum() / np.square(words).sum()
    # 0.1188 is the least for one step of all normal weights; a step of 32 of them fits these better.
    assert 0.09 < lost < 0.1188


@given(width=st.integers(1, 70), seed=st.integers(0, 2**32 - 1), size=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_every_weight_takes_the_nearest_level(width: int, seed: int, size: float) -> None:
    words = (np.random.default_rng(seed).standard_normal((3, width)) * size).astype(np.float32)
    words[1] = 0
    q2, m, scale = quantize_rows2(words)
    assert m.min() >= 1 and (scale > 0).all() and np.isfinite(scale).all()
    rows = two_bits(words).astype(np.float64)
    step = np.repeat(m * scale.astype(np.float64)[:, None], 32, axis=1)[:, :width]
    levels = step[:, :, None] * np.array([-3.0, -1.0, 1.0, 3.0])
    nearest = np.abs(levels - words[:, :, None].astype(np.float64)).min(axis=2)
    assert (np.abs(rows - words) <= nearest + 1e-5 * step).all()
    assert q2.shape == (3, -(-width // 4))


def test_a_row_of_zeros_vanishes() -> None:
    assert np.abs(two_bits(np.zeros((2, 40), np.float32))).max() < 1e-30


def test_listed_rows_are_those_of_int4() -> None:
    words = np.random.default_rng(1).standard_normal((9, 70)).astype(np.float32)
    wide = np.array([0, 3, 8])
    tensors = quantize_mixed(words, wide)
    q4, m, scale = quantize_rows4(words[wide], MAX_ROW_GROUP_SCALE)
    assert np.array_equal(tensors[f"{WORD}.q4"], q4)
    assert np.array_equal(tensors[f"{WORD}.group_scale"][wide], m)
    assert np.array_equal(tensors[f"{WORD}.scale"][wide], scale)
    rows = dequantize_mixed(tensors, 70)
    lost = np.square(rows - words).sum(axis=1) / np.square(words).sum(axis=1)
    assert lost[wide].max() < 0.02 < 0.05 < np.delete(lost, wide).min()


def test_rows_that_are_used_most() -> None:
    counts = np.array([0, 50, 1, 30, 0, 10, 9])
    assert frequent_rows(counts, 0.5).tolist() == [1]
    assert frequent_rows(counts, 0.8).tolist() == [1, 3]
    assert frequent_rows(counts, 1.0).tolist() == [1, 2, 3, 5, 6]  # never one that no text uses
    assert frequent_rows(np.zeros(3, np.int64), 0.8).tolist() == []


@every_level
@pytest.mark.parametrize("wide", [0, 1, 7, 30])
def test_artifact_and_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wide: int, isa: str) -> None:
    """Written, read, and computed, to the bit, as the same rows in float32 are."""
    monkeypatch.setenv("APPROXRT_ISA", isa)
    spec = mixed_spec(wide)
    tensors = random_tensors(spec, wide)
    plain_spec, plain = dequantized(spec, tensors)
    assert (plain_spec.embedding_kind, plain_spec.wide_words, plain_spec.position_kind) == ("f32", 0, "f32")
    artifacts = []
    for name, model in (("a", (spec, tensors)), ("b", (plain_spec, plain))):
        write_artifact(tmp_path / name, *model, TOKENIZER_JSON, CARD)
        artifacts.append(read_artifact(tmp_path / name))
        assert artifacts[-1].spec == model[0]
    ids = [list(range(10)), list(range(10, 20)), list(range(20, 30))]
    mixed, floats = (CpuEngine(artifact, threads=2).forward(ids, None, "logits") for artifact in artifacts)
    assert np.array_equal(mixed, floats)


def test_the_reference_reads_the_same_rows() -> None:
    pytest.importorskip("torch", reason="the reference is written in PyTorch")
    from approxrt.runtime.reference.encoder import Reference

    spec = mixed_spec()
    tensors = random_tensors(spec)
    q2, wide, m = (tensors[f"{WORD}.{part}"] for part in ("q2", "wide", "group_scale"))
    words = Reference(spec, tensors).words.numpy()
    narrow = np.setdiff1d(np.arange(30), wide)
    for row, at in ((0, 0), (11, 5), (22, 39)):
        level = (int(q2[row, at // 4]) >> 2 * (at % 4)) % 4
        scale = float(tensors[f"{WORD}.scale"][narrow[row]])
        assert words[narrow[row], at] == scale * int(m[narrow[row], at // 32]) * (2 * level - 3)
    positions = Reference(spec, tensors).weights["embeddings.position.weight"].numpy()
    q, scales = (tensors[f"embeddings.position.{part}"].astype(float) for part in ("q", "scale"))
    assert np.array_equal(positions, q * scales[:, None])


def test_positions_are_trimmed_as_they_are_stored() -> None:
    spec = mixed_spec()
    small, tensors = trim_positions(spec, random_tensors(spec), 5)
    assert tensors["embeddings.position.q"].shape == (5, 40) and tensors["embeddings.position.scale"].shape == (5,)
    assert small.max_positions == 5 and not tensor_faults(small, tensors)


def test_a_pruned_vocabulary_of_two_bits_is_refused() -> None:
    spec = mixed_spec()
    with pytest.raises(InputError, match="before it is quantised"):
        apply_vocabulary(spec, random_tensors(spec), PrunedVocabulary(TOKENIZER_JSON, np.arange(3)))


CORRUPTIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nibble": (set_value(f"{WORD}.q4", (3, 3), 0x0F), f"'{WORD}.q4' has 1 nibbles of 0"),
    "m": (set_value(f"{WORD}.group_scale", (3, 1), 0), "outside 1 to 255 (the first is 0 at 7)"),
    "scale": (set_value(f"{WORD}.scale", 7, -1), "1 scales that are not > 0"),
    "order": (replace_tensor(f"{WORD}.wide", lambda a: a[::-1].copy()), "must ascend strictly within 0 to 29"),
    "twice": (set_value(f"{WORD}.wide", slice(None), 5), "must ascend strictly within 0 to 29; it goes from 5 to 5"),
    "negative": (set_value(f"{WORD}.wide", 0, -1), "must ascend strictly within 0 to 29; it goes from -1"),
    "past": (set_value(f"{WORD}.wide", -1, 30), "must ascend strictly within 0 to 29"),
    "wide dtype": (replace_tensor(f"{WORD}.wide", lambda a: a.astype(np.uint16)), "the config asks for I32[7]"),
    "rows": (replace_tensor(f"{WORD}.q2", lambda a: a[:-1]), "is U8[22, 10]; the config asks for U8[23, 10]"),
    "gone": (lambda f: edit_tensors(f, lambda t: t.pop(f"{WORD}.q2")), f"missing tensors: {WORD}.q2"),
    "count": (
        lambda f: edit_config(f, lambda c: c["model"].update(wide_words=31)),
        "model.wide_words is 31; it must be between 0 and 30",
    ),
    "count without": (
        lambda f: edit_config(f, lambda c: c["model"].update(embedding_kind="s4")),
        "model.wide_words is 7; it must be between 0 and 0",
    ),
    "position kind": (
        lambda f: edit_config(f, lambda c: c["model"].update(position_kind="s4")),
        "model.position_kind is 's4'; it must be one of f32, s8",
    ),
    "positions": (
        lambda f: edit_config(f, lambda c: c["model"].update(position_kind="f32")),
        "missing tensors: embeddings.position.weight",
    ),
    "position scale": (
        set_value("embeddings.position.scale", 3, 0),
        "1 scales that are not > 0 (the first is 0.0",
    ),
    "position of -128": (set_value("embeddings.position.q", (1, 2), -128), "1 values of -128"),
    "count's type": (
        lambda f: edit_config(f, lambda c: c["model"].update(wide_words="7")),
        "model.wide_words is '7'; an integer is needed",
    ),
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_corruption_is_named(tmp_path: Path, case: str) -> None:
    corrupt, expected = CORRUPTIONS[case]
    spec = mixed_spec()
    path = write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, CARD)
    corrupt(path)
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path)
    assert expected in str(caught.value)


def test_weights_past_the_row_are_named() -> None:
    spec = mixed_spec(hidden=42, embedding_size=42, layers=small_spec(hidden=42).layers)
    tensors = random_tensors(spec)
    assert tensor_faults(spec, tensors) == []
    tensors[f"{WORD}.q2"][2, -1] |= 0x10
    assert [fault for fault in tensor_faults(spec, tensors) if "past input 42" in fault]


def test_a_decoder_has_no_such_table() -> None:
    spec = dataclasses.replace(small_decoder_spec(), embedding_kind="s2")
    assert any("model.embedding_kind is 's2'" in fault for fault in decoder_faults(spec))


def test_integers_are_exact() -> None:
    spec = mixed_spec()
    tensors = random_tensors(spec)
    q = mixed_integers(tensors, spec.embedding_size)
    wide = tensors[f"{WORD}.wide"]
    narrow = np.setdiff1d(np.arange(spec.vocab_size), wide)
    m = np.repeat(tensors[f"{WORD}.group_scale"].astype(int), 32, axis=1)[:, : spec.embedding_size]
    assert set(np.unique(q[narrow] // m[narrow])) == {-3, -1, 1, 3}
    assert np.abs(q[wide] // m[wide]).max() <= 7
