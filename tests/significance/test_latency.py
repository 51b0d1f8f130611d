"""The latency table: what it measures, how it interpolates, that it is kept; timings in turns."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from specs import small_spec

from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec
from approxrt.progress import Progress
from approxrt.significance import latency
from approxrt.significance.latency import BlockTimes, MeasuredTable, block_share, measure_table, typical_lengths
from approxrt.significance.workload import equal_length_batches, sample_texts, sorted_batches, take_turns


@pytest.fixture
def spec() -> ModelSpec:
    return dataclasses.replace(small_spec("f32", hidden=64), layers=(LayerSpec(4, 16, 128),) * 2)


def test_interpolation() -> None:
    sizes, densities = np.array([2, 4]), np.array([0.5, 1.0])
    table = MeasuredTable({("ffn", "s8"): (sizes, densities, np.array([[1.0, 2.0], [3.0, 6.0]]))}, 0.5)
    assert table.ms("ffn", 0, 1.0, "s8") == 0
    assert table.ms("ffn", 4, 1.0, "s8") == 6 and table.ms("ffn", 2, 0.5, "s8") == 1
    assert table.ms("ffn", 3, 0.75, "s8") == pytest.approx((1.5 + 4.5) / 2)
    assert table.ms("ffn", 1, 1.0, "s8") == 1  # half of the smallest
    assert table.ms("ffn", 4, 0.1, "s8") == 3  # below the grid: its least
    again = MeasuredTable.from_json(json.loads(json.dumps(table.to_json())))
    assert again.ms("ffn", 3, 0.75, "s8") == table.ms("ffn", 3, 0.75, "s8")


def test_measured_and_cached(spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    steps: list[str] = []
    wanted = BlockTimes(spec, (5, 9, 9), ("s8",), 1)
    table = measure_table(wanted, Progress(lambda share, text: steps.append(text)))
    assert len(steps) == 1 + len(table.points["attention", "s8"][0]) * 5 + len(table.points["ffn", "s8"][0]) * 5
    for (_, _), (sizes, densities, ms) in table.points.items():
        assert ms.shape == (len(sizes), len(densities)) and (ms > 0).all()
        assert (np.diff(ms, axis=0) >= 0).all() and (np.diff(ms, axis=1) >= 0).all()
    monkeypatch.setattr(latency, "_measure", lambda *_: pytest.fail("measured again"))
    assert measure_table(wanted).to_json() == table.to_json()
    next(tmp_path.rglob("latency-*.json")).write_text("{")
    monkeypatch.setattr(latency, "_measure", lambda *_: table)
    assert measure_table(wanted) is table  # a damaged cache is measured anew
    other = table.scaled(2)
    monkeypatch.setattr(latency, "_measure", lambda *_: other)
    assert measure_table(wanted, fresh=True) is other
    assert other.model_ms(spec, [5, 9, 9]) == pytest.approx(2 * table.model_ms(spec, [5, 9, 9]))


def test_a_whole_model(spec: ModelSpec) -> None:
    sizes = {"attention": np.array([4]), "ffn": np.array([128])}
    points = {(kind, "s8"): (own, np.array([0.5, 1.0]), np.array([[1.0, 3.0]])) for kind, own in sizes.items()}
    table = MeasuredTable(points, 0.25)
    mean = dataclasses.replace(spec, head=dataclasses.replace(spec.head, pooling="mean"))
    assert table.model_ms(mean, [10, 30]) == pytest.approx(0.25 + 2 * (3 + 3))
    assert table.model_ms(spec, [10, 30]) == pytest.approx(0.25 + 3 + 3 + 0.525 * 3 + 0.05 * 3)


def test_samples_of_the_same_texts_share_their_table() -> None:
    """Two seeds leave different texts to train on; what is typical of them is the same."""
    rng = np.random.default_rng(0)
    texts = rng.integers(4, 60, 4000)
    first, second = (typical_lengths(rng.permutation(texts)[:3600], 4096) for _ in range(2))
    assert first == second and len(set(first)) == 8
    assert abs(sum(first) / 4096 - 1) < 0.05 and abs(np.mean(first) / texts.mean() - 1) < 0.05


def test_share_of_the_last_block(spec: ModelSpec) -> None:
    mean = dataclasses.replace(spec, head=dataclasses.replace(spec.head, pooling="mean"))
    assert block_share(mean, 1, "ffn", [10, 30]) == 1
    assert block_share(spec, 0, "ffn", [10, 30]) == 1
    assert block_share(spec, 1, "ffn", [10, 30]) == 0.05
    assert block_share(spec, 1, "attention", [10, 30]) == 0.525


def test_workload() -> None:
    ids = [[1] * n for n in (3, 5, 3, 7, 5, 3)]
    batches = equal_length_batches(ids)
    assert [b.shape for b in batches] == [(3, 3), (2, 5), (1, 7)]
    (padded,) = sorted_batches(ids)
    assert padded[0].shape == (6, 7) and padded[1].sum() == 26
    assert sample_texts(ids, 4, 0) == sample_texts(ids, 4, 0) and len(sample_texts(ids, 4, 0)) == 4
    assert len(sample_texts([[1] * 3000] * 9, 9, 0)) == 1


def test_turns() -> None:
    order: list[str] = []
    times = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, seconds=0.01, least_rounds=3)
    assert set(times) == {"a", "b"} and times["a"].rounds >= 3
    assert "".join(order).startswith("ab" + "aabb" * 3)
    assert times["a"].p20_ms <= times["a"].median_ms <= times["a"].p80_ms
