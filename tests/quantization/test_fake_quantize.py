"""Fake quantisation: the values that the artifact would hold, and gradients that pass through."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from specs import random_tensors, small_spec

torch = pytest.importorskip("torch", reason="fake quantisation is for training in torch")

from approxrt.artifact.storage.bsr import bsr_to_dense, expand_mask, grid  # noqa: E402
from approxrt.artifact.storage.int4 import row_integers, tile_integers  # noqa: E402
from approxrt.quantization.build import quantized  # noqa: E402
from approxrt.quantization.fake_quantize import (  # noqa: E402
    REFRESH,
    FakeQuantizer,
    int4_steps,
    quantize_activations,
    quantize_weight4,
    quantize_weight8,
)
from approxrt.quantization.rtn import quantize_linear, quantize_rows  # noqa: E402
from approxrt.runtime.reference.encoder import quantize_tokens, reference_logits  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, predict  # noqa: E402

IDS = [[3, 4, 5, 6], [7], [8, 9, 10, 11, 12, 13, 14, 15, 3], [4, 4]]
rng = np.random.default_rng(0)
WEIGHT = rng.standard_normal((37, 70)).astype(np.float32)
MASK = rng.random(grid(37, 70)) < 0.4


def test_activations_as_the_engine() -> None:
    x = rng.standard_normal((5, 33)).astype(np.float32)
    x[2] = 0
    q, scale = quantize_tokens(x)
    got = quantize_activations(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, q * scale[:, None], rtol=0, atol=1e-6)


def test_weights8_as_stored() -> None:
    q, scale = quantize_rows(WEIGHT, (1.0,))
    np.testing.assert_allclose(quantize_weight8(torch.from_numpy(WEIGHT)).numpy(), q * scale[:, None], atol=1e-7)


@pytest.mark.parametrize("sparse", [False, True])
def test_weights4_as_stored(sparse: bool) -> None:
    weight = WEIGHT * expand_mask(MASK, 37, 70) if sparse else WEIGHT
    mask = MASK if sparse else None
    got = quantize_weight4(torch.from_numpy(weight), torch.from_numpy(int4_steps(weight, mask))).numpy()
    kind, parts = quantize_linear(weight, "s4", mask)
    if kind == "s4":
        stored = row_integers(parts["q4"], parts["group_scale"], 70)
    else:
        tiles = tile_integers(parts["tiles4"], parts["group_scale"], parts["indptr"])
        stored = bsr_to_dense(tiles, parts["indices"], parts["indptr"], 37, 70)
    np.testing.assert_allclose(got, stored * parts["scale"][:, None], rtol=0, atol=1e-6)


def test_gradients_pass() -> None:
    x = torch.randn(4, 8, requires_grad=True)
    (quantize_activations(x) * torch.arange(8.0)).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), np.broadcast_to(np.arange(8.0), (4, 8)))
    weight = torch.randn(4, 8, requires_grad=True)
    quantize_weight8(weight).sum().backward()
    assert bool((weight.grad == 1).all())


@pytest.mark.parametrize("kind", ["s8", "s4"])
def test_model_computes_as_its_artifact(kind: Any) -> None:
    """The hooked model against the reference of what is built from it: attention's 16 bits and clip ratios apart."""
    spec = small_spec("f32")
    model = TorchEncoder(spec, random_tensors(spec))
    model.set_masks({"layers.0.ffn.up": rng.random(grid(51, 40)) < 0.5})
    names = [name for name, _ in spec.linears() if name.startswith("layers.")]
    quantizer = FakeQuantizer(model, dict.fromkeys(names, kind))
    got = predict(model, IDS, None)
    quantizer.remove()
    plain = predict(model, IDS, None)
    built_spec, tensors = quantized(model, dict.fromkeys(names, kind), clip_ratios=(1.0,))
    want = reference_logits(built_spec, tensors, IDS)
    assert np.abs(got - want).max() < 0.25 * np.abs(plain - want).max()
    assert np.abs(got - want).max() < 5e-3


def test_int4_scales_are_searched_again() -> None:
    spec = small_spec("f32")
    model = TorchEncoder(spec, random_tensors(spec))
    quantizer = FakeQuantizer(model, {"layers.0.ffn.up": "s4"})
    predict(model, IDS, None)
    before = quantizer.steps["layers.0.ffn.up"].clone()
    with torch.no_grad():
        model.weight("layers.0.ffn.up.weight").mul_(3)
    for _ in range(REFRESH - 1):
        quantizer.advance()
    predict(model, IDS, None)
    assert torch.equal(quantizer.steps["layers.0.ffn.up"], before)
    quantizer.advance()
    predict(model, IDS, None)
    np.testing.assert_allclose(quantizer.steps["layers.0.ffn.up"].numpy(), 3 * before.numpy(), rtol=1e-5)
