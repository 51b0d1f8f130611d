"""The built-in profiler: what it counts is what the model's sizes say, and it is off when nobody asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from specs import TOKENIZER_JSON, random_tensors, small_spec

import approxrt
from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.writer import write_artifact
from approxrt.benchmark.profile import WAITING, profile_passes, table

IDS = [[1, 2, 3, 4, 5], [6, 7, 8]]


@pytest.fixture
def model(tmp_path: Path) -> approxrt.Model:
    # Mean pooling: with CLS pooling the last layer leaves out what only other tokens would need.
    spec = small_spec(head=approxrt.artifact.spec.encoder.HeadSpec(pooling="mean"))
    return approxrt.load(write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, {}), threads=2)


def linear_macs(spec: ModelSpec, part: str, tokens: int) -> int:
    """Products of the linears whose name ends so, edge tiles counted whole."""
    return sum(
        -(-l.out_features // 16) * 16 * (-(-l.in_features // 4)) * 4 * tokens
        for name, l in spec.linears()
        if name.endswith(part)
    )


def test_counts_the_products_of_each_operator(model: approxrt.Model) -> None:
    with model.profiling() as taken:
        model.forward(IDS)
        model.forward(IDS)
    macs = {op["op"]: op["macs"] for op in taken["ops"]}
    spec, tokens = model.spec, sum(map(len, IDS))
    assert taken["passes"] == 2
    assert macs["ffn down"] == 2 * linear_macs(spec, "ffn.down", tokens)
    assert macs["ffn up, activation"] == 2 * linear_macs(spec, "ffn.up", tokens)
    assert macs["output"] == 2 * linear_macs(spec, "attention.output", tokens)
    assert macs["query, key, value"] == 2 * sum(
        linear_macs(spec, part, tokens) for part in ("attention.query", "attention.key", "attention.value")
    )
    inner = sum(layer.num_heads * layer.head_dim for layer in spec.layers)
    assert macs["attention"] == 2 * sum(2 * len(ids) ** 2 * inner for ids in IDS)
    assert all(op["ns"] > 0 and op["calls"] > 0 for op in taken["ops"])
    assert sum(op["ns"] for op in taken["ops"]) <= 2 * taken["wall_ns"]


def test_is_off_outside_the_block_and_changes_no_answer(model: approxrt.Model) -> None:
    plain = model.forward(IDS)
    with model.profiling() as taken:
        assert (model.forward(IDS) == plain).all()
    model.forward(IDS)
    assert taken["passes"] == 1
    with model.profiling() as nothing:
        pass
    assert nothing == {"passes": 0, "wall_ns": 0, "ops": []}


def test_shares_add_up(model: approxrt.Model) -> None:
    profile = {"engine": "approxrt:a", "workload": "2 x 8", **profile_passes(model, IDS, seconds=0.02)}
    assert sum(op["share"] for op in profile["ops"]) == pytest.approx(1)
    assert sum(op["ms"] for op in profile["ops"]) == pytest.approx(profile["wall_ms"] * profile["threads"])
    assert profile["ops"][-1]["op"] == WAITING
    assert table(profile).row_count == len(profile["ops"])
