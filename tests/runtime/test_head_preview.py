"""A decoder with a previewed head: the engine against the reference, and against the same model without a preview."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import small_decoder_spec
from levels import every_level_of_linears
from previewed_decoders import VOCAB, InMemory, previewed

from approxrt.artifact.spec.decoder import HeadPreviewSpec
from approxrt.artifact.spec.decoder_schema import decoder_faults, decoder_from_json
from approxrt.artifact.tensors import tensor_faults
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.reference.decoder import DecoderReference
from approxrt.runtime.reference.groupwise import product
from approxrt.sign_attention.codes import dense


def plain(model: InMemory) -> InMemory:
    spec = dataclasses.replace(model.decoder_spec, head_preview=None)
    return InMemory(spec, {n: t for n, t in model.tensors.items() if not n.startswith("head.preview.")})


def tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, count).tolist()


def all_logits(model: InMemory, ids: list[int], threads: int = 2) -> np.ndarray:
    engine = DecoderEngine(model, threads, "f32")
    return engine.step([engine.cache(len(ids))], [ids], True)


@every_level_of_linears
@pytest.mark.parametrize("project, out", [("g8", "g4"), ("f32", "g4"), ("g6", "g8"), ("g4", "g6")])
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_logits_are_the_references_to_the_bit(
    isa: str, project: str, out: str, margin: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APPROXRT_ISA", isa)
    model = previewed(margin, project=project, out=out)
    tensors, preview = model.tensors, model.decoder_spec.head_preview
    assert preview is not None
    ids = tokens(20)
    engine = DecoderEngine(model, 2, "f32")
    hidden = engine.hidden([engine.cache(20)], [ids])

    def linear(name: str, kind: str, x: np.ndarray) -> np.ndarray:
        bias = tensors.get(f"{name}.bias", np.zeros(VOCAB, np.float32))
        if kind == "f32":
            sums = np.zeros((len(x), len(bias)), np.float64)
            return (sums + x.astype(np.float64) @ tensors[f"{name}.weight"].T.astype(np.float64) + bias).astype(
                np.float32
            )
        parts = {
            p: tensors[f"{name}.{p}"]
            for p in ("q", "q4", "q2", "group_scale", "group_offset")
            if f"{name}.{p}" in tensors
        }
        return product(x, parts, bias)

    near = linear("head.preview.out", out, linear("head.preview.project", project, hidden))
    whole = linear("embeddings.word", "g8", hidden)
    refined = near >= near.max(axis=1, keepdims=True) - np.float32(margin)
    assert refined.any(axis=1).all() and refined.mean() < 0.9
    got = all_logits(model, ids)
    if project == "f32":  # sums of float32 here, of float64 there
        np.testing.assert_array_equal(got[refined], whole[refined])
        np.testing.assert_allclose(got[~refined], near[~refined], rtol=0, atol=1e-2)
    else:
        np.testing.assert_array_equal(got, np.where(refined, whole, near))


def test_logits_are_the_float64_references() -> None:
    model = previewed(0.5)
    ids = tokens(30)
    expected = DecoderReference(model.decoder_spec, model.tensors).next_logits(ids)
    errors = np.abs(all_logits(model, ids) - expected).max(axis=1)
    # A word at the margin may fall on either side.
    assert np.quantile(errors, 0.5) < 1e-3 * np.abs(expected).max()


def test_hidden_states_are_what_the_head_reads() -> None:
    model = previewed(0.5)
    ids = tokens(30)
    engine = DecoderEngine(model, 2, "f32")
    pieces, cache = [], engine.cache(30)
    for begin, end in ((0, 3), (3, 30)):
        pieces.append(engine.hidden([cache], [ids[begin:end]]))
    hidden = np.concatenate(pieces)
    np.testing.assert_array_equal(hidden, engine.hidden([engine.cache(30)], [ids]))
    reference = DecoderReference(plain(model).decoder_spec, plain(model).tensors)
    whole = reference.head_logits(torch.from_numpy(hidden.astype(np.float64))).numpy()
    np.testing.assert_allclose(whole, all_logits(plain(model), ids), rtol=0, atol=1e-4 * np.abs(whole).max())


@every_level_of_linears
def test_a_large_margin_is_the_model_without_a_preview(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPROXRT_ISA", isa)
    model = previewed(1e30)
    for count in (1, 8, 9, 50):
        ids = tokens(count)
        np.testing.assert_array_equal(all_logits(model, ids), all_logits(plain(model), ids))


@every_level_of_linears
@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_a_sequence_depends_on_nothing_else(isa: str, margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on how its tokens come, nor on the batch, nor on threads, nor on the level."""
    monkeypatch.setenv("APPROXRT_ISA", "scalar")
    model = previewed(margin, width=96)
    ids = tokens(50)
    expected = all_logits(model, ids, 1)
    monkeypatch.setenv("APPROXRT_ISA", isa)
    # The vocabulary has five strips: of seven threads some have none.
    for threads in (1, 2, 7):
        engine = DecoderEngine(model, threads, "f32", block_tokens=24)
        one_by_one = engine.cache(50)
        rows = np.stack([engine.step([one_by_one], [[token]])[0] for token in ids])
        # Attention's sums depend on the level by their last bits; those of the head do not.
        np.testing.assert_array_equal(rows, engine.step([engine.cache(50)], [ids], True))
        close = np.abs(rows - expected).max(axis=1) < 1e-2
        assert close.mean() > 0.8
        cache, pieces = engine.cache(50), []
        for begin, end in ((0, 3), (3, 30), (30, 38), (38, 50)):
            pieces.append(engine.step([cache], [ids[begin:end]], True))
        np.testing.assert_array_equal(np.concatenate(pieces), rows)
        np.testing.assert_array_equal(engine.prefill(engine.cache(50), ids), rows[-1])
        caches = [engine.cache(64) for _ in range(4)]
        batch = engine.step(caches, [[1], ids[:20], tokens(31), [2, 3]])
        np.testing.assert_array_equal(batch[1], rows[19])
        np.testing.assert_array_equal(engine.step(caches, [[5], [ids[20]], [6], [7]])[1], rows[20])
        # Prompts of more than a few sequences, each of one token.
        many = engine.step([engine.cache(4) for _ in range(12)], [[ids[0]]] * 12)
        np.testing.assert_array_equal(many, np.repeat(rows[:1], 12, axis=0))


def test_the_whole_head_is_not_packed() -> None:
    model = previewed(1.0, width=32)
    both = [DecoderEngine(m, 1).info()["packed_weight_bytes"] for m in (model, plain(model))]
    # Five strips of two groups: g8 of 48 inputs against g4 of 32, and the projection's two strips.
    assert both[0] - both[1] == 5 * 320 + 2 * 2 * 544 + 4 * 32 - 5 * 2 * 544


def test_profile_counts_the_preview_as_the_head() -> None:
    engine = DecoderEngine(previewed(1.0), 2)
    with engine.profiling() as profile:
        engine.step([engine.cache(4)], [[1]])
    head = next(op for op in profile["ops"] if op["op"] == "head")
    assert head["macs"] >= 64 * 48 + 80 * 64


# -- what is written ------------------------------------------------------------------


def test_spec_goes_to_json_and_back() -> None:
    spec = previewed(1.5).decoder_spec
    assert decoder_from_json(json.loads(json.dumps(spec.to_json()))) == (spec, [])
    assert dict(spec.linears())["head.preview.out"].kind == "g4"
    changed = spec.with_linear_kinds({"head.preview.project": "f32"})
    assert changed.head_preview == HeadPreviewSpec(64, 1.5, "f32", "g4")


def test_a_spec_without_a_preview_is_written_as_before() -> None:
    assert "head_preview" not in small_decoder_spec("g8").to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"margin": -1}, "margin is -1; it must be between 0 and"),
        ({"margin": float("nan")}, "margin is nan"),
        ({"margin": float("inf")}, "margin is inf"),
        ({"margin": "1"}, "margin is '1'; a number is needed"),
        ({"margin": True}, "a number is needed"),
        ({"width": 0}, "width is 0; it must be a multiple of 32"),
        ({"width": 40}, "width is 40; it must be a multiple of 32"),
        ({"width": 1 << 20}, "it must be a multiple of 32 from 32 to"),
        ({"width": 64.0}, "an integer is needed"),
        ({"project": "s8"}, "project is 's8'; it must be one of f32, g4, g6, g8"),
        ({"out": "f32"}, "out is 'f32'; it must be one of g4, g6, g8"),
        ({"out": 4}, "out is 4; a string is needed"),
        ({"more": 1}, "unknown fields: 'more'"),
    ],
)
def test_hostile_previews_are_refused(change: dict[str, Any], message: str) -> None:
    data = previewed(1.0).decoder_spec.to_json()
    data["head_preview"] = {**data["head_preview"], **change}
    _, faults = decoder_from_json(data)
    assert any(message in fault for fault in faults), faults


@pytest.mark.parametrize("value", [[], 3, "x", {}])
def test_what_is_no_preview_is_refused(value: Any) -> None:
    data = previewed(1.0).decoder_spec.to_json() | {"head_preview": value}
    assert decoder_from_json(data)[1]


@pytest.mark.parametrize(
    "change",
    [{"tied_embeddings": False}, {"embedding_kind": "s8"}, {"embedding_kind": "g6"}, {"embedding_kind": "f32"}],
)
def test_a_head_that_cannot_be_previewed_is_refused(change: dict[str, Any]) -> None:
    spec = dataclasses.replace(previewed(1.0).decoder_spec, **change)
    assert any("must be a tied embedding table of kind 'g8'" in fault for fault in decoder_faults(spec))


def test_tensors_must_fit() -> None:
    model = previewed(1.0)
    assert tensor_faults(model.decoder_spec, model.tensors) == []
    short = dict(model.tensors)
    short["head.preview.out.q4"] = short["head.preview.out.q4"][:-1]
    del short["head.preview.project.bias"]
    faults = tensor_faults(model.decoder_spec, short)
    assert any("head.preview.out.q4" in fault for fault in faults)
    assert any("missing tensors: head.preview.project.bias" in fault for fault in faults)
    assert any("unexpected tensors" in fault for fault in tensor_faults(plain(model).decoder_spec, model.tensors))


def test_inspect_shows_it(tmp_path: Path) -> None:
    from specs import TOKENIZER_JSON

    from approxrt.artifact.reader import read_artifact
    from approxrt.artifact.summary import summarize
    from approxrt.artifact.writer import write_artifact

    model = previewed(1.0)
    path = write_artifact(tmp_path / "a", model.decoder_spec, model.tensors, TOKENIZER_JSON, {})
    summary = summarize(read_artifact(path))
    assert summary["head_preview"] == {"width": 64, "margin": 1.0, "project": "g8", "out": "g4"}
    assert {"head.preview.project", "head.preview.out"} <= {linear["name"] for linear in summary["linears"]}


def test_the_float32_model_behind_it_has_none() -> None:
    """The artifact that match-signs writes keeps the preview."""
    model = previewed(1.0)
    spec, tensors = dense(model.decoder_spec, model.tensors)
    assert decoder_faults(spec) == [] and tensor_faults(spec, tensors) == []
