"""Heads, units and blocks of decoders: taken out for real, measured alone, chosen by plans."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from decoders import small_decoder_spec
from hypothesis import given
from hypothesis import strategies as st
from random_decoders import gpt_like
from specs import random_tensors

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.spec.formats import FORMATS
from approxrt.artifact.tensors import tensor_faults
from approxrt.compression.families.decoder_build import Builder, with_words
from approxrt.compression.records import from_json, to_json
from approxrt.planning.allocate import Price, allocate
from approxrt.planning.decoder_options import DecoderOptions, block_options, with_measured_blocks
from approxrt.planning.plan import Limits, Option, Plan, StructureOption
from approxrt.pruning.reconstruct import refit_kept, remove_and_refit
from approxrt.pruning.second_order import LinearStatistics
from approxrt.pruning.structure import Structure, channel_groups, kept_groups
from approxrt.quantization.rotation import rotate
from approxrt.quantization.scheme import SCHEMES, Scheme, scheme_named
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.reference.decoder import DecoderReference
from approxrt.significance.decoder_latency import measure_latency, random_decoder
from approxrt.significance.decoder_removal import HeldOutText
from approxrt.significance.decoder_statistics import collect_from_text
from approxrt.significance.elements import Element, elements_of
from approxrt.significance.removal import measure_removals
from approxrt.torch_models.decoder import TorchDecoder
from approxrt.training.decoder_distillation import (
    DecoderDistillation,
    DecoderDistillationOptions,
    StoredLinears,
    TeacherText,
    on_grid,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def model(shape: str) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    if shape == "gpt":
        spec = gpt_like("f32")
        return spec, random_tensors(spec)
    spec = small_decoder_spec("f32", hidden=64)
    spec = dataclasses.replace(
        spec, layers=tuple(dataclasses.replace(l, head_dim=16, intermediate_size=96) for l in spec.layers)
    )
    return rotate(spec, random_tensors(spec)) if shape == "rotated" else (spec, random_tensors(spec))


def pieces(count: int = 4, tokens: int = 40) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(1).integers(0, 70, (count, tokens)))


SOME = {
    "group": (np.array([0, 1]), None),
    "head of each group": (np.array([1, 2]), None),
    "units": (None, np.arange(32, 96)),
    "attention": (np.arange(0), None),
    "ffn": (None, np.arange(0)),
}


def structure(spec: DecoderSpec, name: str) -> Structure:
    heads, units = SOME[name]
    whole = Structure.of(spec)
    return Structure(
        (whole.heads[0] if heads is None else heads, *whole.heads[1:]),
        (whole.channels[0] if units is None else units[units < spec.layers[0].intermediate_size], *whole.channels[1:]),
    )


@pytest.mark.parametrize("shape", ["llama", "rotated", "gpt"])
@pytest.mark.parametrize("part", SOME)
def test_removal_is_real(shape: str, part: str) -> None:
    """The engine runs the smaller model, and computes what the whole one does with the removed inputs at their mean.

    The refit's own gain is taken out: with inputs that do not vary together there would be none.
    """
    spec, tensors = model(shape)
    stats = collect_from_text(TorchDecoder(spec, tensors), pieces()).linears
    keep = structure(spec, part)
    small, weights, left = remove_and_refit(spec, tensors, keep, stats)
    assert not list(tensor_faults(small, weights)) and set(left) == {n for n, _ in small.linears()} | (
        {"head.out"} if spec.tied_embeddings else set()
    )
    layer = small.layers[0]
    assert layer.num_heads == len(keep.heads[0]) and layer.intermediate_size == len(keep.channels[0])
    for name, linear in small.linears():
        assert weights[f"{name}.weight"].shape == (linear.out_features, linear.in_features)
        assert left[name].weighted.shape == (linear.in_features,) * 2 and len(left[name].mean) == linear.in_features
    ids = pieces(1)[0].tolist()
    want = DecoderReference(small, weights).next_logits(ids)
    built = type("M", (), {"decoder_spec": small, "tensors": weights})()
    engine = DecoderEngine(built, 1, "f32")
    np.testing.assert_allclose(engine.step([engine.cache(len(ids))], [ids], True), want, atol=4e-5 * np.abs(want).max())


def test_removed_inputs_leave_their_mean_and_the_rest_adjusts() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4000, 6)) @ rng.standard_normal((6, 20)) + rng.standard_normal(20)
    weight = rng.standard_normal((8, 20)).astype(np.float32)
    kept, moments = np.arange(20) < 14, x.T @ x / len(x)
    stats = LinearStatistics(moments, x.mean(0), weighted=0.25 * moments, weight=0.25)
    new, bias = refit_kept(weight, kept, stats, ridge=1e-6)
    assert not new[:, ~kept].any()
    # Six directions: the fourteen inputs that stay hold all that the others knew.
    np.testing.assert_allclose(x @ new.T + bias, x @ weight.T, atol=2e-2 * np.abs(x @ weight.T).max())
    nothing, bias = refit_kept(weight, np.zeros((1, 5), bool), stats)
    assert not nothing.any()
    np.testing.assert_allclose(bias, weight @ x.mean(0), rtol=1e-5, atol=1e-5)


def test_wrong_structures_are_refused() -> None:
    spec, tensors = model("rotated")
    stats = collect_from_text(TorchDecoder(spec, tensors), pieces(1)).linears
    with pytest.raises(ValueError, match="same number"):
        kept_groups(spec.layers[0], np.array([0, 1, 2]))
    whole = Structure.of(spec)
    with pytest.raises(ValueError, match="blocks of 32"):
        remove_and_refit(spec, tensors, Structure(whole.heads, (np.arange(40), whole.channels[1])), stats)


def test_measured_removals_are_those_of_the_removed_model() -> None:
    spec, tensors = model("llama")
    stats = collect_from_text(TorchDecoder(spec, tensors), pieces()).linears
    means = {name: found.mean for name, found in stats.items()}
    elements = elements_of(spec)
    wanted = ("layers.0.attention", "layers.1.attention.group.1", "layers.0.attention.head.3", "layers.1.ffn.units.2")
    assert set(wanted) <= {element.name for element in elements}
    batch = pieces(2)
    held = HeldOutText(TorchDecoder(spec, tensors), batch)
    measured = measure_removals(held, means, elements)
    dense, found = measured.baseline, measured.removals
    assert [removal.element for removal in found] == elements
    by_name = {removal.element.name: removal for removal in found}

    def loss(s: DecoderSpec, t: dict[str, np.ndarray]) -> float:
        rows = []
        for ids in batch.tolist():
            logits = DecoderReference(s, t).next_logits(ids)[:-1]
            logits = logits - np.log(np.exp(logits).sum(1, keepdims=True))
            rows.append(-logits[np.arange(len(ids) - 1), ids[1:]])
        return float(np.mean(rows))

    assert dense == pytest.approx(loss(spec, tensors), rel=1e-5)
    for name, part in (("layers.0.attention", "attention"), ("layers.0.ffn", "ffn")):
        small, weights, _ = remove_and_refit(spec, tensors, structure(spec, part), stats)
        removal = by_name[name]
        assert removal.loss == pytest.approx(loss(small, weights), rel=1e-5)
        assert removal.change == pytest.approx(removal.loss - dense) and removal.stderr > 0
    gone = Element(0, "attention", "group", 1).inputs(spec)
    np.testing.assert_array_equal(gone, np.arange(64) >= 32)
    asked = []
    some = measure_removals(held, means, elements, enough=lambda: bool(asked.append(1)) or len(asked) == 3)
    assert len(asked) == 3 and some.removals == found[: len(some.removals)]
    assert {removal.element.stage for removal in some.removals} == {0, 1, 2}


# -- plans --------------------------------------------------------------------


def choices_of(seed: int, blocks: bool = True) -> DecoderOptions:
    rng = np.random.default_rng(seed)
    spec, _ = model("rotated")
    linears = {
        name: [
            Option(kind, float(rng.exponential() * 8 / FORMATS[kind.format].bits / kind.density**2),
                         kind.bytes(n, k) * 1e-9, kind.bytes(n, k))
            for kind in SCHEMES if name != "head.out" or not kind.sparse
        ]
        for name, (n, k) in ((name, (l.out_features, l.in_features)) for name, l in spec.linears())
    }  # fmt: skip
    made = {}
    for name in ("layers.0.attention", "layers.1.ffn") if blocks else ():
        whole = np.arange(4 if "attention" in name else 96)
        made[name] = [StructureOption(whole, 1.0, 0.0), StructureOption(whole[:0], 0.0, float(rng.exponential() * 30))]
    return DecoderOptions(linears, made)


@given(seed=st.integers(0, 1000), share=st.floats(0.05, 0.95))
def test_plans_keep_to_their_limits(seed: int, share: float) -> None:
    spec, _ = model("rotated")
    parts = choices_of(seed).parts()

    def plan_within(limits: Limits) -> Plan:
        plan = allocate(spec, parts, limits)
        assert plan is not None
        return plan

    finest, coarsest = plan_within(Limits(ms=1e9)), plan_within(Limits(loss=1e9))
    assert finest.loss <= coarsest.loss and finest.ms >= coarsest.ms
    limit = finest.loss + share * (coarsest.loss - finest.loss)
    plan = plan_within(Limits(loss=limit))
    assert plan.loss <= limit and plan.ms <= finest.ms
    target = coarsest.ms + share * (finest.ms - coarsest.ms)
    timed = plan_within(Limits(ms=target))
    assert timed.ms <= target
    # Of all plans that are a best trade at some price, none within the limit is better.
    for price in np.geomspace(1e-3, 1e9, 60):
        decisions = [part.best(Price(ms=float(price))) for part in parts]
        loss, ms = sum(d.loss for d in decisions), sum(d.ms for d in decisions)
        assert loss > limit or ms >= plan.ms - 1e-12
        assert ms > target or loss >= timed.loss - 1e-12
    gone = {f"layers.{i}.{kind}" for i in range(2) for kind, kept in (("attention", plan.keep.heads[i]),
            ("ffn", plan.keep.channels[i])) if not len(kept)}  # fmt: skip
    assert all(name.rsplit(".", 1)[0] not in gone for name in plan.schemes)
    again = from_json(json.loads(json.dumps(to_json(plan))), Plan)
    assert again.schemes == plan.schemes and again.to_report() == plan.to_report()


def test_block_options_are_structures_that_can_be_built() -> None:
    spec, tensors = model("rotated")
    stats = collect_from_text(TorchDecoder(spec, tensors), pieces(2)).linears
    blocks = block_options(spec, tensors, stats)
    assert set(blocks) == {f"layers.{i}.{kind}" for i in range(2) for kind in ("attention", "ffn")}
    whole = Structure.of(spec)
    for name, options in blocks.items():
        losses = [option.loss for option in options]
        assert options[0].share == 1 and losses[0] == pytest.approx(0, abs=1e-12)
        assert not len(options[-1].kept) and max(losses) == losses[-1]
        for option in options:
            heads, units = list(whole.heads), list(whole.channels)
            (heads if "attention" in name else units)[int(name.split(".")[1])] = option.kept
            remove_and_refit(spec, tensors, Structure(tuple(heads), tuple(units)), stats)
    assert [len(g) for g in channel_groups(spec, 96)] == [32, 32, 32]
    scaled = with_measured_blocks(blocks, {"layers.0.ffn": 2 * blocks["layers.0.ffn"][-1].loss, "layers.1.ffn": -1.0})
    assert scaled["layers.0.ffn"][1].loss == pytest.approx(2 * blocks["layers.0.ffn"][1].loss)
    assert scaled["layers.1.ffn"][-1].loss == 0


@pytest.mark.parametrize("kind", SCHEMES, ids=lambda kind: kind.name)
def test_every_kind_is_built_and_has_its_bytes(kind: Scheme) -> None:
    assert scheme_named(kind.name) == kind
    spec, tensors = model("rotated")
    stats = collect_from_text(TorchDecoder(spec, tensors), pieces(2)).linears
    builder = Builder(spec, tensors, stats)
    assert builder.score(lambda share: True, lambda text: None)
    names = [name for name, _ in spec.linears()]
    heads = Scheme(kind.format)
    keep = structure(spec, "units")
    for kept in (Structure.of(spec), keep):
        plan = Plan({name: heads if name == "head.out" else kind for name in names}, kept, 0, 0, 0)
        built = builder.build(plan)
        assert not list(tensor_faults(built.decoder_spec, built.tensors))
        for name, linear in built.decoder_spec.linears():
            own = sum(a.nbytes for n, a in built.tensors.items() if n.rsplit(".", 1)[0] == name and "indptr" not in n)
            chosen = plan.schemes[name]
            wanted = chosen.bytes(linear.out_features, linear.in_features)
            # Groups of int4 tiles that are not full have a scale all the same.
            assert wanted <= own <= wanted * (1.15 if chosen.sparse else 1)
        ids = pieces(1)[0].tolist()
        want = DecoderReference(built.decoder_spec, built.tensors).next_logits(ids)[-1]
        engine = DecoderEngine(built, 1, "f32")
        got = engine.step([engine.cache(len(ids))], [ids])[0]
        np.testing.assert_allclose(got, want, atol=0.05 * np.abs(want).max())


def test_latency_is_measured_for_every_kind() -> None:
    spec, _ = model("rotated")
    heads = [kind for kind in SCHEMES if not kind.sparse]
    found = measure_latency(spec, SCHEMES, heads, 1)
    assert set(found.per_byte) == set(SCHEMES) and set(found.head) == set(heads)
    assert all(value > 0 for value in (*found.per_byte.values(), *found.head.values()))
    for kind in SCHEMES:
        timed = random_decoder(spec, kind, Scheme("s8"))
        assert not list(tensor_faults(timed.decoder_spec, timed.tensors))


# -- distillation -----------------------------------------------------------------


def test_the_model_in_training_computes_what_the_artifact_will() -> None:
    spec, tensors = model("rotated")
    widths = {"ffn.up": "s4", "ffn.down": "s4", "ffn.gate": "g4", "attention.value": "g4"}
    kinds = {name: widths.get(name.split(".", 2)[-1], "s8") for name, _ in spec.linears()}
    rng = np.random.default_rng(0)
    masks = {
        f"layers.{i}.{name}": rng.random(shape) < 0.6
        for i in range(2)
        for name, shape in (("ffn.up", (6, 16)), ("attention.query", (4, 16)))
    }
    dense = TorchDecoder(spec, tensors)

    def teacher(ids: list[int]) -> np.ndarray:
        with torch.no_grad():
            x = dense.embed(torch.tensor([ids]))
            for i in range(2):
                x = dense.layer(i, x)
            return np.asarray(dense.head(x)[0].numpy())

    options = DecoderDistillationOptions(lr=2e-3)
    recovery = DecoderDistillation(spec, tensors, StoredLinears(kinds, masks), TeacherText(pieces(8), teacher), options)
    before = [recovery.advance(i / 40) for i in range(40)]
    assert np.mean(before[-8:]) < 0.7 * np.mean(before[:8])
    weights = recovery.weights()
    for name, mask in masks.items():
        assert not weights[f"{name}.weight"][np.repeat(np.repeat(~mask, 16, 0), 4, 1)].any()
    recovery._steps, recovery._lines = {}, {}
    with torch.no_grad():
        got = recovery.logits(pieces(1)).numpy()[0]
    rest = {name: array for name, array in tensors.items() if not name.startswith("layers.")}
    built = with_words(*on_grid(spec, rest | weights, StoredLinears(kinds, masks)), None)
    assert {linear.kind for _, linear in built.decoder_spec.linears()} == {"s8", "s4", "g4", "bsr_s8", "bsr_s4"}
    want = DecoderReference(built.decoder_spec, built.tensors).next_logits(pieces(1)[0].tolist())
    np.testing.assert_allclose(got, want, atol=0.02 * np.abs(want).max())
    # A state that is put back takes the same next step.
    state = copy.deepcopy(recovery.state())
    other = DecoderDistillation(spec, tensors, StoredLinears(kinds, masks), TeacherText(pieces(8), teacher), options)
    other.restore(state)
    assert other.advance(0.5) == recovery.advance(0.5)
    for name, value in recovery.weights().items():
        np.testing.assert_array_equal(other.weights()[name], value)
