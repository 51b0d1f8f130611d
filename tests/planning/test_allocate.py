"""The search: the least error within time and bytes, against brute force; options that mean what they say."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from specs import small_spec

from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec
from approxrt.compression.rounds import Rounds
from approxrt.planning.allocate import BUCKETS, Decision, Price, allocate
from approxrt.planning.encoder_options import Block, BlockPart, BlockScores, block_bytes, blocks_of
from approxrt.planning.plan import Limits, Option
from approxrt.quantization.scheme import Scheme


class Table:
    """Time in proportion to what is multiplied."""

    def ms(self, block: str, size: int, density: float, kind: str) -> float:
        return size * density * (1.0 if kind == "s8" else 0.7) / 16


@pytest.fixture
def spec() -> ModelSpec:
    return dataclasses.replace(small_spec("f32", hidden=64), layers=(LayerSpec(4, 16, 128), LayerSpec(2, 16, 96)))


def random_scores(spec: ModelSpec, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        name: rng.random((linear.out_features, linear.in_features)) ** 4
        for name, linear in spec.linears()
        if name.startswith("layers.")
    }


options_lists = st.lists(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.integers(0, 100)), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
)


@dataclasses.dataclass(frozen=True)
class Listed:
    """A part that is nothing but its options."""

    options: Sequence[Option]

    def best(self, price: Price) -> Decision:
        return self.decide(min(self.options, key=price.of))

    def decide(self, option: Option) -> Decision:
        return Decision(option.loss, option.ms, option.bytes, {})


def as_parts(raw: list[list[tuple[float, float, int]]]) -> list[Listed]:
    return [Listed([Option(Scheme("s8"), *option) for option in row]) for row in raw]


def parts_of(spec: ModelSpec, scores: dict[str, np.ndarray]) -> list[BlockPart]:
    scored = [BlockScores(spec, block, scores) for block in blocks_of(spec)]
    return [BlockPart(s, s.options(Table(), ("s8",), {})) for s in scored]


@given(options_lists, st.floats(0.1, 30))
@settings(max_examples=60)
def test_time_limit_against_brute_force(raw: list[list[tuple[float, float, int]]], limit: float) -> None:
    """Buckets round times up: the answer fits the limit, and is as good as any that leaves a bucket a block."""
    got = allocate(small_spec("f32"), as_parts(raw), Limits(ms=limit))
    choices = list(itertools.product(*raw))
    fitting = [sum(o[0] for o in c) for c in choices if sum(o[1] for o in c) <= limit]
    safe = [sum(o[0] for o in c) for c in choices if sum(o[1] for o in c) <= limit * (1 - (len(raw) + 1) / BUCKETS)]
    if got is None:
        assert not safe
        return
    assert got.ms <= limit * (1 + 1e-9)
    assert got.loss >= min(fitting) - 1e-9
    if safe:
        assert got.loss <= min(safe) + 1e-9


@given(options_lists, st.integers(0, 200))
@settings(max_examples=60)
def test_byte_limit(raw: list[list[tuple[float, float, int]]], limit: int) -> None:
    least = sum(min(o[2] for o in row) for row in raw)
    got = allocate(small_spec("f32"), as_parts(raw), Limits(bytes=limit))
    if least > limit:
        assert got is None
    else:
        assert got is not None and got.bytes <= limit


def test_without_limits_everything_stays(spec: ModelSpec) -> None:
    got = allocate(spec, parts_of(spec, random_scores(spec)), Limits())
    assert got is not None
    assert [len(kept) for kept in got.keep.heads] == [4, 2] and [len(kept) for kept in got.keep.channels] == [128, 96]
    assert got.schemes == {name: Scheme("s8") for name, _ in spec.linears() if name.startswith("layers.")}


def test_unimportant_block_goes_first(spec: ModelSpec) -> None:
    scores = random_scores(spec)
    for name in scores:
        if name.startswith("layers.1.ffn"):
            scores[name] *= 1e-6
    parts = parts_of(spec, scores)
    whole = allocate(spec, parts, Limits())
    assert whole is not None
    got = allocate(spec, parts, Limits(ms=whole.ms - Table().ms("ffn", 96, 1.0, "s8")))
    assert got is not None
    assert len(got.keep.channels[1]) == 0 and len(got.keep.heads[0]) == 4
    assert not [name for name in got.schemes if name.startswith("layers.1.ffn")]


def test_structure_keeps_the_best(spec: ModelSpec) -> None:
    """Heads and groups of 16 units with the largest scores stay, in their order."""
    scores = {name: np.full(s.shape, 1e-3) for name, s in random_scores(spec).items()}
    scores["layers.0.attention.output"][:, 16:32] = 1
    scores["layers.0.attention.value"][16:32] = 1
    for group in (1, 6):
        rows = slice(16 * group, 16 * group + 16)
        scores["layers.0.ffn.up"][rows] = 1
        scores["layers.0.ffn.down"][:, rows] = 1
    attention = BlockScores(spec, Block(0, "attention"), scores)
    assert attention.elements(1).tolist() == list(range(16, 32))
    ffn = BlockScores(spec, Block(0, "ffn"), scores)
    assert ffn.elements(2).tolist() == [*range(16, 32), *range(96, 112)]


def test_masks_have_the_density_and_the_best_tiles(spec: ModelSpec) -> None:
    scores = random_scores(spec)
    scored = BlockScores(spec, Block(0, "ffn"), scores)
    option = next(o for o in scored.options(Table(), ("s8",), {}) if o.size == 128 and o.scheme.density == 0.25)
    masks = scored.masks(128, 0.25)
    total = sum(mask.size for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == total - round(0.75 * total)
    tiles = scored.tile_scores(8)
    kept = np.concatenate([tiles[n][m] for n, m in masks.items()])
    gone = np.concatenate([tiles[n][~m] for n, m in masks.items()])
    assert kept.min() >= gone.max()
    assert option.loss == pytest.approx(gone.sum())


def test_head_needs_its_value_or_its_output_only(spec: ModelSpec) -> None:
    """A head whose output columns are worth nothing is lost for nothing, whatever its value rows are worth."""
    scores = random_scores(spec)
    scores["layers.0.attention.output"][:, 48:64] = 0
    scored = BlockScores(spec, Block(0, "attention"), scores)
    assert scored.lost[3] == 0 and scored.order[-1] == 3


def test_bytes(spec: ModelSpec) -> None:
    assert block_bytes(spec, "ffn", 0, Scheme("s8", 1.0), 16) == 4 * 64
    dense = block_bytes(spec, "ffn", 128, Scheme("s8", 1.0), 16)
    assert dense == 2 * 8 * 16 * 64 + 8 * (128 + 64)
    half = block_bytes(spec, "ffn", 128, Scheme("s8", 0.5), 16)
    assert half == 8 * 16 * 66 + 8 * (128 + 64)


def test_int4_is_chosen_before_half_of_the_weights_go(spec: ModelSpec) -> None:
    # Scores of trained models: the lower half of the tiles has about a hundredth of their sum.
    rng = np.random.default_rng(0)
    scores = {
        name: np.kron(np.exp(2.3 * rng.standard_normal((-(-n // 16), -(-k // 4)))), np.ones((16, 4)))[:n, :k]
        for name, linear in spec.linears()
        if name.startswith("layers.")
        for n, k in [(linear.out_features, linear.in_features)]
    }
    subject = SimpleNamespace(model=SimpleNamespace(spec=spec), element_scores=lambda: scores)
    dense = sum(block_bytes(spec, *of, Scheme("s8"), 16) for of in (("attention", 4), ("ffn", 128), ("attention", 2)))
    dense += block_bytes(spec, "ffn", 96, Scheme("s8", 1.0), 16)
    ramp = Rounds(
        subject, Table(), lambda *_: 1.0, 1.0, None, 0.0, [8], max_bytes=round(0.6 * dense), formats=("s8", "s4")
    )
    plan = ramp._allocate(1.0, ramp._block_scores())
    assert {scheme.format for scheme in plan.schemes.values()} == {"s4"}


def test_a_disturbed_timing_prunes_nothing() -> None:
    """Once something else runs, and the time is double: it is taken again before more is pruned; what fits stays."""
    pytest.importorskip("torch", reason="models need torch")
    from small_encoder import random_examples, small_encoder

    from approxrt.compression.families.pruned_encoder import PrunedEncoder

    def cut(times: list[float]) -> tuple[dict[str, np.ndarray], int]:
        """(masks, timed prunings) of one whose timings are `times`, the last one again and again."""
        subject = PrunedEncoder(small_encoder(), small_encoder(), random_examples(40))
        subject.score()
        left = iter([*times, *[times[-1]] * 20])
        ramp = Rounds(subject, Table(), lambda *_: next(left), 100.0, target_ms=8.0, base_ms=0.0, lengths=[8])
        ramp.prune(1.0)
        return dict(subject.model.masks), len(ramp.history)

    calm, disturbed, slow = cut([8.0]), cut([16.0, 8.0]), cut([16.0])
    assert calm[1] == disturbed[1] == 1 and slow[1] > 1
    assert calm[0].keys() == disturbed[0].keys() and calm[0]
    for name, mask in calm[0].items():
        np.testing.assert_array_equal(mask, disturbed[0][name])
    assert sum(mask.sum() for mask in slow[0].values()) < sum(mask.sum() for mask in calm[0].values())
