"""`compress --task lm` of a decoder that has 4-bit grids of its own: they cost nothing, and are not lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from candidates import kept_candidates
from grouped_decoders import grouped_checkpoint
from lm_checkpoints import text, trained_llama
from rounding import assert_equal_but_for_flips

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.storage.groupwise import dequantize_groups
from approxrt.artifact.tensors import tensor_faults
from approxrt.compression.families import decoder as family
from approxrt.compression.families.decoder_build import Builder, Own, pruned_without_statistics, untied, with_words
from approxrt.compression.job import Job
from approxrt.compression.recipes import decoder as recipe
from approxrt.compression.recipes import decoder_rounds, decoder_training
from approxrt.compression.recipes.decoder_training import starting_state
from approxrt.compression.records import Candidate, from_json
from approxrt.compression.report import Report
from approxrt.models.decoder import DecoderCheckpoint
from approxrt.planning.decoder_options import schemes_of
from approxrt.planning.plan import Plan
from approxrt.pruning.structure import Selection, Structure, selected
from approxrt.quantization.calibration import calibration
from approxrt.quantization.fake_quantize import groups_of_activations
from approxrt.quantization.gptq import dequantized_linear, output_error, round_weights
from approxrt.quantization.grids import nearest, parts_of
from approxrt.quantization.groupwise import quantize_groups4, quantize_groups6, quantize_groups8
from approxrt.quantization.rtn import quantize_linear
from approxrt.quantization.scheme import SCHEMES, Scheme, scheme_named
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.reference.decoder import DecoderReference
from approxrt.runtime.reference.groupwise import dequantized_tokens
from approxrt.significance import decoder_latency
from approxrt.significance.decoder_statistics import collect_from_text
from approxrt.torch_models.decoder import TorchDecoder
from approxrt.training.budget import Budget
from approxrt.training.decoder_distillation import (
    DecoderDistillation,
    DecoderDistillationOptions,
    StoredLinears,
    TeacherText,
    on_grid,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> DecoderCheckpoint:
    """Heads of 32 and 128 units: both leave by whole groups."""
    folder = tmp_path_factory.mktemp("lm") / "checkpoint"
    return grouped_checkpoint(trained_llama(folder, hidden=64, heads=2, num_key_value_heads=2, inner=128))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "train.txt"
    path.write_text(text())
    return path


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, checkpoint: DecoderCheckpoint) -> None:
    """The checkpoint stands for a .gguf file; a table decides instead of timings, which say nothing of this size."""
    torch.set_num_threads(1)
    monkeypatch.setattr(family, "TIMING_SECONDS", 0.05)
    monkeypatch.setattr(family, "load_any_decoder", lambda path, grouped: checkpoint)

    def latency(spec: Any, kinds: Any, heads: Any, *args: Any, **more: Any) -> decoder_latency.DecoderLatency:
        head = {kind: 1e-9 * kind.bytes(spec.vocab_size, spec.hidden_size) for kind in heads}
        return decoder_latency.DecoderLatency(dict.fromkeys(kinds, 1e-9), head)

    monkeypatch.setattr(decoder_rounds, "measure_latency", latency)


def compress(data: Path, out: Path, **options: Any) -> Report:
    return approxrt.compress("model.gguf", data, out=out, task="lm", threads=1, **{"budget": 60.0, **options})


def builder_of(checkpoint: DecoderCheckpoint, keeps_table: bool = True) -> tuple[Builder, torch.Tensor]:
    spec, tensors = untied(checkpoint.spec, checkpoint.tensors)
    rng = np.random.default_rng(0)
    pieces = torch.from_numpy(rng.integers(0, spec.vocab_size, (6, 40)))
    grids = {**checkpoint.grouped, "head.out": checkpoint.grouped["embeddings.word"]}
    stats = collect_from_text(TorchDecoder(spec, tensors), pieces, grouped=True).linears
    return Builder(spec, tensors, stats, Own(grids, True, keeps_table)), pieces


def plan_of(builder: Builder, structure: Structure | None = None, **kinds: str) -> Plan:
    """As in the file, but for `kinds` by the end of a linear's name."""
    assert builder.own is not None
    chosen = {}
    for name, _ in builder.spec.linears():
        other = [scheme_named(kind) for end, kind in kinds.items() if name.endswith(end)]
        own = builder.own.scheme(name)
        assert own is not None
        chosen[name] = other[0] if other else own
    return Plan(chosen, structure or Structure.of(builder.spec), 0, 0, 0)


def some_gone(builder: Builder) -> Structure:
    """A head of the first layer, two of four groups of units of the second."""
    whole = Structure.of(builder.spec)
    units = np.concatenate([np.arange(32, 64), np.arange(96, 128)])
    return Structure((np.array([1]), *whole.heads[1:]), (whole.channels[0], units, *whole.channels[2:]))


# -- parts -----------------------------------------------------------------------


def test_activations_are_the_engines() -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((5, 80)) * 10.0 ** rng.integers(-4, 3, (5, 80))).astype(np.float32)
    x[1, 32:64] = 0
    x[2] = 0
    np.testing.assert_allclose(groups_of_activations(torch.from_numpy(x)).numpy(), dequantized_tokens(x), rtol=1e-6)


def test_grids_of_rows_and_columns() -> None:
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((6, 128)).astype(np.float32)
    rows, columns = np.array([4, 1]), np.r_[32:64, 96:128]
    for quantize in (quantize_groups4, quantize_groups6, quantize_groups8):
        parts = quantize(weight)
        whole = dequantize_groups(parts, 128)
        for axis, indices in ((0, rows), (1, columns)):
            kept = selected(parts, Selection(axis, indices))
            assert kept is not None
            want = np.take(whole, indices, axis)
            np.testing.assert_array_equal(dequantize_groups(kept, want.shape[1]), want)
        for amid in (np.arange(33), np.arange(16, 48), np.r_[0:16, 48:64], None):
            assert selected(parts, Selection(1, amid)) is None
    parts = quantize_groups4(weight)
    again = nearest(dequantize_groups(parts, 128), parts, (0, 15))
    np.testing.assert_array_equal(again["q4"], parts["q4"])


@pytest.mark.parametrize("kind", ["g4", "g6", "g8"])
def test_rounding_by_inputs(kind: Any) -> None:
    """On scales that are given, and on its own; with inputs that vary together it beats the nearest points by far."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((500, 8)) @ rng.standard_normal((8, 96)) + 0.1 * rng.standard_normal((500, 96))
    moments = (x.T @ x / 500).astype(np.float32)
    weight = rng.standard_normal((20, 96)).astype(np.float32)
    _, plain = quantize_linear(weight, kind)
    for grid in (None, plain):
        rounded, stored, parts = round_weights(weight, None, moments, kind, grid=grid)
        assert stored == kind
        np.testing.assert_array_equal(rounded, dequantized_linear(parts, 20, 96))
        np.testing.assert_array_equal(parts["group_scale"], plain["group_scale"])
        errors = [output_error(w - weight, moments) for w in (rounded, dequantized_linear(plain, 20, 96))]
        assert errors[0] < 0.5 * errors[1]


def test_kinds_that_a_file_leaves() -> None:
    assert schemes_of("layers.0.ffn.up", Scheme("g4")) == [Scheme("g4")]
    assert schemes_of("head.out", Scheme("g8")) == [Scheme("g8"), Scheme("g6"), Scheme("g4")]
    assert set(schemes_of("layers.0.ffn.up", None)) == {s for s in SCHEMES if s.format in ("s4", "g4", "s8")}


# -- what is built ------------------------------------------------------------------


def test_what_stays_is_the_files_own(checkpoint: DecoderCheckpoint) -> None:
    builder, pieces = builder_of(checkpoint)
    whole = builder.build(plan_of(builder))
    for name, parts in checkpoint.grouped.items():
        for part, array in parts.items():
            np.testing.assert_array_equal(whole.tensors[f"{name}.{part}"], array)
    assert whole.decoder_spec.tied_embeddings
    built = builder.build(plan_of(builder, some_gone(builder), out="g6"))
    assert not list(tensor_faults(built.decoder_spec, built.tensors))
    assert built.decoder_spec.head_kind == "g6" and built.decoder_spec.embedding_kind == "g8"
    rows = np.arange(32, 64)
    for part in ("query", "key", "value"):
        name = f"layers.0.attention.{part}"
        want = dequantize_groups(checkpoint.grouped[name], 64)[rows]
        np.testing.assert_array_equal(dequantize_groups(parts_of(name, built.tensors), 64), want)
    # What loses inputs keeps its scales.
    for name, columns in (("layers.0.attention.output", rows), ("layers.1.ffn.down", np.r_[32:64, 96:128])):
        want = checkpoint.grouped[name]["group_scale"][:, columns[::32] // 32]
        np.testing.assert_array_equal(built.tensors[f"{name}.group_scale"], want)
    ids = pieces[0].tolist()
    expected = DecoderReference(built.decoder_spec, built.tensors).next_logits(ids)
    engine = DecoderEngine(built, 1, "f32")
    got = engine.step([engine.cache(len(ids))], [ids], True)
    np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())


def test_one_table_stays_one(checkpoint: DecoderCheckpoint) -> None:
    """With size for the objective the head's new kind is the table's as well."""
    builder, _ = builder_of(checkpoint, keeps_table=False)
    built = builder.build(plan_of(builder, out="g4"))
    assert built.decoder_spec.tied_embeddings and built.decoder_spec.embedding_kind == "g4"
    assert not list(tensor_faults(built.decoder_spec, built.tensors))


def test_the_model_in_training_starts_and_ends_on_the_grids(checkpoint: DecoderCheckpoint) -> None:
    builder, pieces = builder_of(checkpoint)
    plan = plan_of(builder, some_gone(builder), out="g6", up="int4")
    built = builder.build(plan)
    state = starting_state(builder, plan)
    weights = {name: value.numpy() for name, value in state["weights"].items()}
    grids = {name: {p: v.numpy() for p, v in parts.items()} for name, parts in state["grids"].items()}
    spec, tensors = pruned_without_statistics(builder.spec, builder.tensors, plan.keep, weights)
    dense = TorchDecoder(builder.spec, builder.tensors)

    def teacher(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            x = dense.embed(torch.tensor([ids]))
            for i in range(3):
                x = dense.layer(i, x)
            return np.asarray(dense.head(x)[0].numpy())

    kinds = {name: scheme.format for name, scheme in plan.schemes.items()}
    options = DecoderDistillationOptions(lr=2e-4, trains_head=True)
    recovery = DecoderDistillation(
        spec, tensors, StoredLinears(kinds, {}, grids), TeacherText(pieces, teacher), options
    )

    def model() -> np.ndarray:
        with torch.no_grad():
            return np.asarray(recovery.logits(pieces[:1]).numpy()[0])

    ids = pieces[0].tolist()
    want = DecoderReference(built.decoder_spec, built.tensors).next_logits(ids)
    assert_equal_but_for_flips(model(), want)
    losses = [recovery.advance(i / 40) for i in range(40)]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    learnt = recovery.grids()
    _, whole = pruned_without_statistics(builder.spec, builder.tensors, plan.keep, recovery.weights())
    after = with_words(*on_grid(spec, whole, StoredLinears(kinds, {}, learnt)), builder.own)
    assert not list(tensor_faults(after.decoder_spec, after.tensors))
    want = DecoderReference(after.decoder_spec, after.tensors).next_logits(ids)
    assert_equal_but_for_flips(model(), want)
    name = "layers.2.ffn.down"
    assert (learnt[name]["group_scale"] != grids[name]["group_scale"]).mean() > 0.5
    moved = np.abs(learnt[name]["group_scale"] / grids[name]["group_scale"] - 1)
    assert 0 < np.median(moved) < 0.1
    changed = dequantize_groups(learnt[name] | {"group_scale": grids[name]["group_scale"]}, 128)
    assert (learnt[name]["q4"] != grids[name]["q4"]).mean() < 0.5 and changed.shape == (64, 128)
    state = recovery.state()
    other = DecoderDistillation(spec, tensors, StoredLinears(kinds, {}, grids), TeacherText(pieces, teacher), options)
    other.restore(state)
    for part, array in other.grids()[name].items():
        np.testing.assert_array_equal(array, learnt[name][part])


# -- the command ------------------------------------------------------------------------


def test_as_fast_as_the_limit_allows(checkpoint: DecoderCheckpoint, data: Path, tmp_path: Path) -> None:
    report = compress(data, tmp_path / "a", max_drop=0.05, recipe="one-shot")
    found = kept_candidates(tmp_path / "a.work")
    assert found[0]["about"]["plan"] == "as in the file" and found[0]["drop"] < 0.02
    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "a.work").glob("candidate-*.json"))]
    planned = [from_json(record, Candidate) for record in records if record["provenance"]["plan"] is not None]
    assert planned and report.finished
    for candidate in planned:
        artifact, plan = read_artifact(candidate.path), candidate.provenance.plan
        assert plan is not None
        assert not artifact.decoder_spec.down_block  # nothing is rotated
        for name, kind in plan.schemes.items():
            layer = int(name.split(".")[1]) if name != "head.out" else -1
            untouched = len(plan.keep.heads[layer]) == 2 and len(plan.keep.channels[layer]) == 128
            if name != "head.out" and kind == Scheme("g4") and untouched:
                for part, array in checkpoint.grouped[name].items():
                    np.testing.assert_array_equal(artifact.tensors[f"{name}.{part}"], array)
    assert approxrt.load(tmp_path / "a").generate("the", max_new_tokens=2)


def test_the_head_is_previewed(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted once; every later candidate whose head still is the embedding table has the same, and plans know its
    price."""
    monkeypatch.setattr(recipe, "PREVIEW_KL", 0.1)
    # Of this few words 4 bits each are less still than a preview.
    monkeypatch.setattr(decoder_rounds.Search, "_measured_head", lambda self, builder, options: options[:1])
    compress(data, tmp_path / "a", max_drop=0.5, recipe="one-shot")
    found = kept_candidates(tmp_path / "a.work")
    about = found[1]["about"]
    assert about["plan"] == "as in the file, the head previewed" and 0 < about["preview"]["kl"] <= 0.1
    first = read_artifact(found[1]["path"])
    assert (
        first.decoder_spec.head_preview is not None
        and read_artifact(found[0]["path"]).decoder_spec.head_preview is None
    )
    planned = [c for c in found if isinstance(c["about"]["plan"], dict)]
    assert planned
    for candidate in planned:
        artifact = read_artifact(candidate["path"])
        assert artifact.decoder_spec.head_preview == first.decoder_spec.head_preview
        for name, array in first.tensors.items():
            if name.startswith("head.preview."):
                np.testing.assert_array_equal(artifact.tensors[name], array)
    # A run that goes on takes it from the candidate.
    monkeypatch.setattr(recipe, "with_preview", None)
    (tmp_path / "a.work" / "finished.json").unlink()
    again = compress(data, tmp_path / "a", max_drop=0.5, recipe="one-shot", overwrite=True)
    assert again.finished and approxrt.load(tmp_path / "a").generate("the", max_new_tokens=2)


def test_a_head_that_is_not_previewed(data: Path, tmp_path: Path) -> None:
    """None of this few words is worth it at the usual limit, which the report says; size has nothing to win by one."""
    report = compress(data, tmp_path / "a", max_drop=0.05, recipe="one-shot")
    assert any(note.startswith("the head is not previewed: no preview within") for note in report.notes)
    report = compress(data, tmp_path / "b", objective="size", max_drop=0.05, recipe="one-shot")
    assert not any("previewed" in note for note in report.notes)
    for work in ("a.work", "b.work"):
        assert not any(
            c["about"]["plan"] == "as in the file, the head previewed" for c in kept_candidates(tmp_path / work)
        )


@pytest.mark.slow
def test_a_smaller_one_learns(data: Path, tmp_path: Path) -> None:
    compress(data, tmp_path / "a", objective="size", shrink=8.0, max_drop=0.001, epochs=6.0, lr=1e-3)
    found = kept_candidates(tmp_path / "a.work")
    untrained = [c for c in found if isinstance(c["about"]["plan"], dict) and not c["about"]["trained"]]
    trained = [c for c in found if c["about"].get("trained")]
    assert untrained and trained
    assert min(c["drop"] for c in trained) < 0.8 * min(c["drop"] for c in untrained)
    artifact = read_artifact(min(trained, key=lambda c: c["drop"])["path"])
    assert "g4" in {linear.kind for _, linear in artifact.decoder_spec.linears()}


def test_what_looks_harmless_is_measured_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of many noisy numbers is too small: what counts is a second measurement, on text of its own."""
    calls: list[tuple[list[str], torch.Tensor, dict[str, float]]] = []
    original = decoder_rounds.measure_removals

    def measure(held: Any, means: Any, elements: Any, *args: Any) -> Any:
        found = original(held, means, elements, *args)
        calls.append(([e.name for e in elements], held.batch, {r.element.name: r.change for r in found.removals}))
        return found

    monkeypatch.setattr(decoder_rounds, "measure_removals", measure)
    monkeypatch.setattr(decoder_rounds, "AGAIN", 2)
    compress(data, tmp_path / "a", max_drop=0.05, recipe="one-shot")
    (_, first, found), (again, second, better) = calls
    assert again == sorted(found, key=found.__getitem__)[:2]
    pieces = {tuple(piece.tolist()) for piece in first}
    assert len(second) == decoder_rounds.AGAIN_SEQUENCES and not pieces & {tuple(piece.tolist()) for piece in second}
    kept = json.loads((tmp_path / "a.work" / "removals.json").read_text())
    assert kept == pytest.approx(found | better)


def test_what_is_out_of_reach_is_said_first(data: Path, tmp_path: Path) -> None:
    """No plan is built for a speed that none has: the best within the limit is looked for, and the report says so."""
    log: list[str] = []
    report = compress(data, tmp_path / "a", speedup=1000.0, max_drop=0.05, recipe="one-shot", log=log.append)
    said = next(i for i, line in enumerate(log) if "out of reach" in line)
    assert not any(line.startswith("candidate 1") for line in log[:said])
    assert any("out of reach" in note for note in report.notes) and not report.met
    planned = [c for c in kept_candidates(tmp_path / "a.work") if isinstance(c["about"]["plan"], dict)]
    assert planned and all(c["about"]["plan"]["loss"] < 1 for c in planned)


@pytest.mark.slow
def test_more_budget_goes_on(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little time for a step of distillation is no end: the same command with more trains, and notes stay."""
    wanted: dict[str, Any] = {"speedup": 1000.0, "max_drop": 0.01, "epochs": None}
    original = decoder_training.DecoderDistillation.advance

    def slow(self: Any, done: float) -> float:
        clock[0] += 1e5
        return original(self, done)

    clock, elapsed = [0.0], Budget.elapsed
    with monkeypatch.context() as patch:
        patch.setattr(Budget, "elapsed", lambda self: elapsed(self) + clock[0])
        patch.setattr(Job, "save_clock", lambda self, check=0.0: None)
        patch.setattr(decoder_training.DecoderDistillation, "advance", slow)
        first = compress(data, tmp_path / "a", **wanted)
    assert not first.finished and not any(c["about"].get("trained") for c in kept_candidates(tmp_path / "a.work"))
    assert any("no time for distillation" in note for note in first.notes)
    made = len(kept_candidates(tmp_path / "a.work"))
    second = compress(data, tmp_path / "a", overwrite=True, **{**wanted, "budget": 45.0})
    assert second.finished and any(c["about"].get("trained") for c in kept_candidates(tmp_path / "a.work")[made:])
    assert any("out of reach" in note for note in second.notes)
    assert not any("no time" in note or "goes on" in note for note in second.notes)


def test_measured_heads_are_paired(checkpoint: DecoderCheckpoint, data: Path) -> None:
    from approxrt.significance.decoder_removal import head_divergence

    spec, tensors = untied(checkpoint.spec, checkpoint.tensors)
    batch = calibration(list(range(3, 60)), 2, 20)
    head = tensors["head.out.weight"]
    assert head_divergence(spec, tensors, head, batch) == pytest.approx(0, abs=1e-6)
    noise = np.random.default_rng(0).standard_normal(head.shape).astype(np.float32)
    near, far = (head_divergence(spec, tensors, head + size * noise, batch) for size in (0.01, 0.1))
    assert 0 < near < far
    assert head_divergence(spec, tensors, head + 0.1 * noise, batch, with_table=True) > far
