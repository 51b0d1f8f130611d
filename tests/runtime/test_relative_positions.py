"""Attention scores that are biased by relative position: the buckets, the engine on every level, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from levels import every_level_of_linears
from specs import random_tensors, small_spec

from approxrt.artifact.memory import Memory
from approxrt.artifact.spec.encoder import MAX_RELATIVE_BUCKETS, HeadSpec, LayerSpec, ModelSpec
from approxrt.artifact.spec.encoder_schema import encoder_faults, encoder_from_json
from approxrt.artifact.tensors import tensor_faults
from approxrt.errors import DeviceError
from approxrt.runtime.cpu.engine import CpuEngine
from approxrt.runtime.relative_positions import distance_buckets, expanded_biases, relative_buckets
from approxrt.sign_attention.search import signable

LENGTHS = (1, 2, 7, 16, 33, 64)


def biased_spec(kind: str = "f32", pooling: str = "cls", **changes: Any) -> ModelSpec:
    """Three layers of heads of 16 and 24 elements, with eight buckets of which the last begins at 20 tokens."""
    layers = (LayerSpec(3, 16, 51, *[kind] * 6), LayerSpec(2, 24, 64, *[kind] * 6), LayerSpec(1, 16, 32, *[kind] * 6))
    fields: dict[str, Any] = {
        "layers": layers,
        "head": HeadSpec(pooling=pooling, dense_features=40),
        "max_positions": 64,
        "max_length": 64,
        "relative_buckets": 8,
        "relative_distance": 20,
    }
    return small_spec(kind, **fields | changes)


def biased_tensors(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Random tensors, float matrices wide enough that attention and what follows are no averages."""
    return {
        name: array * np.float32(6) if array.dtype == np.float32 and array.ndim == 2 else array
        for name, array in random_tensors(spec).items()
    }


def sequences() -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, 30, n).tolist() for n in LENGTHS]


def test_buckets_are_those_of_transformers() -> None:
    torch = pytest.importorskip("torch", reason="compares with transformers, which needs torch")
    mpnet = pytest.importorskip("transformers.models.mpnet.modeling_mpnet", reason="compares with transformers")
    distances = np.arange(-5000, 5001)
    theirs = mpnet.MPNetEncoder.relative_position_bucket(torch.tensor(distances)).numpy()
    np.testing.assert_array_equal(relative_buckets(distances, 32, 128), theirs)


def test_tables_are_expanded_over_all_distances() -> None:
    spec = biased_spec()
    tensors = biased_tensors(spec)
    found = dict(expanded_biases(spec, tensors))
    assert list(found) == [f"layers.{i}.attention.relative_bias" for i in range(3)]
    name = "layers.1.attention.relative_bias"
    assert found[name].shape == (2, 127)
    for distance in (-63, -20, -3, -1, 0, 1, 2, 19, 63):
        bucket = relative_buckets(np.array(distance), 8, 20)
        np.testing.assert_array_equal(found[name][:, 63 + distance], tensors[name][:, bucket])
    # A key behind the query is at least one token away: the first bucket of that half has none.
    assert set(distance_buckets(spec)) == set(range(8)) - {4}
    assert not dict(expanded_biases(small_spec(), {}))


@every_level_of_linears
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_the_engine_computes_the_reference(isa: str, pooling: str) -> None:
    pytest.importorskip("torch", reason="the reference is written in torch")
    from approxrt.runtime.reference.encoder import reference_logits

    spec = biased_spec(pooling=pooling)
    tensors, ids = biased_tensors(spec), sequences()
    exact = reference_logits(spec, tensors, ids)
    got = CpuEngine(Memory(spec, tensors), 1, isa=isa).forward(ids, None, "logits")
    # Three layers of norms: some hundred float32 roundings in a row.
    np.testing.assert_allclose(got, exact, rtol=0, atol=2e-5 * np.abs(exact).max())
    plain = dict(tensors) | {name: 0 * a for name, a in tensors.items() if name.endswith("relative_bias")}
    without = CpuEngine(Memory(spec, plain), 1, isa=isa).forward(ids, None, "logits")
    assert np.abs(without - got).max() > 1e-2, "biases must matter for this test to mean anything"


@every_level_of_linears
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", ["f32", "s8"])
def test_answers_do_not_depend_on_batch_threads_or_division(isa: str, kind: str, pooling: str) -> None:
    spec = biased_spec(kind, pooling)
    model, ids = Memory(spec, biased_tensors(spec)), sequences()
    whole = CpuEngine(model, 1, isa=isa).forward(ids, None, "logits")
    for threads, tuning in ((1, {}), (2, {}), (2, {"few_tokens": 0}), (2, {"few_tokens": 1000})):
        engine = CpuEngine(model, threads, tuning, isa=isa)
        np.testing.assert_array_equal(engine.forward(ids, None, "logits"), whole)
        alone = np.concatenate([engine.forward([row], None, "logits") for row in ids])
        np.testing.assert_array_equal(alone, whole)


def test_beside_int8_linears_16_bit_products_are_biased_too() -> None:
    pytest.importorskip("torch", reason="the reference is written in torch")
    from approxrt.runtime.reference.encoder import reference_hidden

    layer = LayerSpec(2, 16, 0, "s8", "s8", "s8", "s8")
    spec = biased_spec("s8", "mean", layers=(layer,), embedding_kind="f32")
    tensors = biased_tensors(spec)
    engine = CpuEngine(Memory(spec, tensors), 1)
    for row, exact in zip(sequences(), reference_hidden(spec, tensors, sequences()), strict=True):
        got = engine.hidden(row)
        # Where rounding decides otherwise, one step of one input: rare, and small in the mean.
        assert np.sqrt(np.mean((got - exact) ** 2)) < 0.01 * np.sqrt(np.mean(exact**2))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"relative_buckets": 6}, "relative_buckets is 6; it must be 0 or a multiple of 4"),
        ({"relative_buckets": MAX_RELATIVE_BUCKETS + 4}, f"up to {MAX_RELATIVE_BUCKETS}"),
        ({"relative_buckets": -4}, "relative_buckets is -4"),
        ({"relative_distance": 2}, "relative_distance is 2; it must be between 3 and"),
        ({"relative_buckets": 0}, "relative_distance is 20; it must be 0 where relative_buckets is 0"),
        ({"relative_buckets": "8"}, "relative_buckets is '8'; an integer is needed"),
        ({"max_positions": 1 << 17, "layers": (LayerSpec(100, 16, 51),)}, "the limit is"),
        (
            {"layers": (LayerSpec(2, 16, 51, attention_keep=4, sign_from=8),)},
            "attention_keep is 4; it must be 0 where attention is biased by relative position",
        ),
    ],
)
def test_faults_of_specs(changes: dict[str, Any], named: str) -> None:
    faults = encoder_faults(dataclasses.replace(biased_spec(), **changes))
    assert any(named in fault for fault in faults), faults


def test_faults_of_tables() -> None:
    spec = biased_spec()
    assert not encoder_faults(spec) and not tensor_faults(spec, biased_tensors(spec))
    name = "layers.0.attention.relative_bias"
    high = biased_tensors(spec) | {name: np.full((3, 8), 1e29, np.float32)}
    assert any("magnitude over 1e+28" in fault for fault in tensor_faults(spec, high))
    wrong = biased_tensors(spec) | {name: np.zeros((2, 8), np.float32)}
    assert any(name in fault and "[3, 8]" in fault for fault in tensor_faults(spec, wrong))


def test_only_models_with_a_bias_say_so_in_their_config() -> None:
    assert not {"relative_buckets", "relative_distance", "layer_order"} & set(small_spec().to_json())
    spec = biased_spec()
    again, faults = encoder_from_json(spec.to_json())
    assert again == spec and not faults


def test_what_does_not_go_with_a_bias_is_refused() -> None:
    pytest.importorskip("torch", reason="the GPU engine imports it")
    from approxrt.runtime.cuda.engine import CudaEngine

    spec = biased_spec()
    assert signable(spec) == {} and signable(small_spec())
    with pytest.raises(DeviceError, match=r"a bias of attention scores by relative position.*device='cpu'"):
        CudaEngine(Memory(spec, biased_tensors(spec)), "cpu")
