"""Heads, units and blocks that are taken out: matrices shrink, biases keep the mean, nothing else moves."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from specs import random_tensors, small_spec

torch = pytest.importorskip("torch", reason="the shrunk model is compared in torch")

from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec  # noqa: E402
from approxrt.artifact.storage.bsr import expand_mask, grid  # noqa: E402
from approxrt.artifact.tensors import tensor_faults  # noqa: E402
from approxrt.pruning.structure import (  # noqa: E402
    Structure,
    dead_structure,
    head_rows,
    remove,
    selections,
    shrink_masks,
)
from approxrt.torch_models.encoder import TorchEncoder, predict  # noqa: E402

IDS = [[3, 4, 5, 6], [7], [8, 9, 10, 11, 12, 13, 14, 15, 3], [4, 4]]


@pytest.fixture
def spec() -> ModelSpec:
    base = small_spec("f32", hidden=48)
    return dataclasses.replace(base, layers=(LayerSpec(3, 16, 64), LayerSpec(2, 16, 48)))


def zero_means(spec: ModelSpec) -> dict[str, np.ndarray]:
    out = {}
    for i, layer in enumerate(spec.layers):
        out[f"layers.{i}.attention.output"] = np.zeros(layer.num_heads * layer.head_dim, np.float32)
        out[f"layers.{i}.ffn.down"] = np.zeros(layer.intermediate_size, np.float32)
    return out


def test_equals_gates(spec: ModelSpec) -> None:
    """Removal with means of zero gives what a gate of zero computes."""
    tensors = random_tensors(spec)
    keep = Structure((np.array([0, 2]), np.arange(0)), (np.arange(5, 40), np.arange(48)))
    model = TorchEncoder(spec, tensors)
    model.gates = {
        "layers.0.attention": torch.tensor([1.0, 0.0, 1.0]),
        "layers.1.attention": torch.zeros(2),
        "layers.0.ffn": torch.from_numpy(np.isin(np.arange(64), keep.channels[0]).astype(np.float32)),
    }
    small, out, _ = remove(spec, tensors, keep, zero_means(spec))
    assert [(l.num_heads, l.intermediate_size) for l in small.layers] == [(2, 35), (0, 48)]
    assert not tensor_faults(small, {name: np.ascontiguousarray(array) for name, array in out.items()})
    np.testing.assert_allclose(
        predict(TorchEncoder(small, out), IDS, None), predict(model, IDS, None), rtol=0, atol=1e-5
    )


def test_mean_goes_to_the_bias(spec: ModelSpec) -> None:
    tensors, means = random_tensors(spec), zero_means(spec)
    means["layers.0.ffn.down"][:] = np.linspace(-1, 1, 64)
    keep = Structure.of(spec)
    keep = Structure(keep.heads, (np.arange(16, 64), keep.channels[1]))
    _, out, _ = remove(spec, tensors, keep, means)
    weight = tensors["layers.0.ffn.down.weight"]
    want = tensors["layers.0.ffn.down.bias"] + weight[:, :16] @ means["layers.0.ffn.down"][:16]
    np.testing.assert_allclose(out["layers.0.ffn.down.bias"], want, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(out["layers.0.ffn.down.weight"], weight[:, 16:])


def test_order_of_units_is_free(spec: ModelSpec) -> None:
    tensors, whole = random_tensors(spec), Structure.of(spec)
    order = Structure(whole.heads, (np.random.default_rng(0).permutation(64), np.arange(48)[::-1]))
    _, out, _ = remove(spec, tensors, order, zero_means(spec))
    assert not np.array_equal(out["layers.0.ffn.up.weight"], tensors["layers.0.ffn.up.weight"])
    np.testing.assert_allclose(
        predict(TorchEncoder(spec, out), IDS, None), predict(TorchEncoder(spec, tensors), IDS, None), rtol=0, atol=1e-5
    )


def test_masks_follow(spec: ModelSpec) -> None:
    tensors = random_tensors(spec)
    masks = {"layers.0.ffn.down": np.random.default_rng(0).random(grid(48, 64)) < 0.5}
    whole = Structure.of(spec)
    keep = Structure(whole.heads, (np.arange(16, 48), whole.channels[1]))
    got = shrink_masks(spec, masks, selections(spec, keep), tensors)
    np.testing.assert_array_equal(got["layers.0.ffn.down"], masks["layers.0.ffn.down"][:, 4:12])


def test_dead_structure(spec: ModelSpec) -> None:
    """A head whose columns are all pruned, and a group of units whose rows are, have no effect that varies."""
    tensors = random_tensors(spec)
    output = np.ones(grid(48, 48), bool)
    output[:, 4:8] = False  # columns 16..31: head 1
    up = np.ones(grid(48, 48), bool)
    up[2] = False  # units 32..47 of layer 1
    masks = {"layers.0.attention.output": output, "layers.1.ffn.up": up}
    shapes = {"layers.0.attention.output": (48, 48), "layers.1.ffn.up": (48, 48)}
    keep = dead_structure(spec, masks, shapes)
    assert keep.heads[0].tolist() == [0, 2] and keep.heads[1].tolist() == [0, 1]
    assert keep.channels[0].tolist() == list(range(64)) and keep.channels[1].tolist() == list(range(32))
    model = TorchEncoder(spec, tensors)
    model.set_masks(masks)
    masked = model.tensors()
    # A dead unit still puts out a constant, its activation at its bias: as a mean it is exact.
    means = zero_means(spec)
    bias = masked["layers.1.ffn.up.bias"]
    means["layers.1.ffn.down"] = torch.nn.functional.gelu(torch.from_numpy(bias)).numpy()
    small, out, kept = remove(spec, masked, keep, means, masks)
    np.testing.assert_allclose(
        predict(TorchEncoder(small, out), IDS, None), predict(model, IDS, None), rtol=0, atol=1e-5
    )
    assert kept["layers.0.attention.output"].all() and kept["layers.1.ffn.up"].all()
    assert expand_mask(kept["layers.1.ffn.up"], 32, 48).shape == (32, 48)


def test_head_rows() -> None:
    assert head_rows(np.array([2, 0]), 3).tolist() == [6, 7, 8, 0, 1, 2]


def test_heads_leave_with_their_rows_of_a_relative_bias(spec: ModelSpec) -> None:
    spec = dataclasses.replace(spec, relative_buckets=8, relative_distance=20)
    tensors = random_tensors(spec)
    keep = Structure((np.array([0, 2]), np.arange(0)), Structure.of(spec).channels)
    model = TorchEncoder(spec, tensors)
    model.gates = {"layers.0.attention": torch.tensor([1.0, 0.0, 1.0]), "layers.1.attention": torch.zeros(2)}
    small, out, _ = remove(spec, tensors, keep, zero_means(spec))
    assert not tensor_faults(small, {name: np.ascontiguousarray(array) for name, array in out.items()})
    name = "layers.0.attention.relative_bias"
    np.testing.assert_array_equal(out[name], tensors[name][[0, 2]])
    assert "layers.1.attention.relative_bias" not in out
    np.testing.assert_allclose(
        predict(TorchEncoder(small, out), IDS, None), predict(model, IDS, None), rtol=0, atol=1e-5
    )
