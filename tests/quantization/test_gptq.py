"""GPTQ rounding: on the artifact's grid bit for bit, and with less output error than plain rounding."""

from __future__ import annotations

import numpy as np
import pytest
from specs import random_tensors, small_spec

from approxrt.artifact.storage.bsr import expand_mask, grid
from approxrt.quantization.gptq import dequantized_linear, output_error, round_weights
from approxrt.quantization.rtn import quantize_linear
from approxrt.runtime.reference.encoder import Reference

SHAPES = [(16, 32), (33, 70), (15, 37), (48, 200)]


def problem(n: int, k: int, sparse: bool) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    rng = np.random.default_rng(n + k)
    x = rng.normal(size=(4 * k, k)) @ (np.eye(k) + 2 * rng.normal(size=(k, k)) / np.sqrt(k))
    mask = rng.random(grid(n, k)) < 0.5 if sparse else None
    if mask is not None:
        mask[0] = len(mask) == 1  # a strip without tiles, beside others
    return rng.normal(size=(n, k)).astype(np.float32), mask, x.T @ x / len(x)


@pytest.mark.parametrize("asked, sparse", [("s8", False), ("s8", True), ("g4", False), ("s4", False), ("s4", True)])
@pytest.mark.parametrize("n, k", SHAPES)
def test_the_output_error_is_below_that_of_plain_rounding(n, k, sparse, asked):
    weight, mask, hessian = problem(n, k, sparse)
    kept = np.ones((n, k), bool) if mask is None else expand_mask(mask, n, k)
    rounded, kind, tensors = round_weights(weight, mask, hessian, asked)
    plain_kind, plain = quantize_linear(weight, asked, mask)
    assert kind == plain_kind
    assert {name: (t.dtype, t.shape) for name, t in tensors.items()} == {
        name: (t.dtype, t.shape) for name, t in plain.items()
    }
    assert not rounded[~kept].any()
    mine, theirs = (output_error(w - weight * kept, hessian) for w in (rounded, dequantized_linear(plain, n, k)))
    assert 0 < mine < 0.85 * theirs


@pytest.mark.parametrize("kind", ["s8", "bsr_s8", "s4", "bsr_s4", "g4"])
def test_weights_are_what_the_runtime_reads(kind):
    """The reference forms its integers from the artifact's tensors; scale times those is the weight, bit for bit."""
    spec = small_spec(kind)
    tensors = random_tensors(spec)
    name, n, k = "layers.0.ffn.up", 51, 40
    weight, mask, hessian = problem(n, k, kind.startswith("bsr"))
    rounded, found, parts = round_weights(weight, mask, hessian, {"bsr_s8": "s8", "bsr_s4": "s4"}.get(kind, kind))
    assert found == kind
    tensors = {key: value for key, value in tensors.items() if not key.startswith(name) or key.endswith("bias")}
    tensors |= {f"{name}.{part}": value for part, value in parts.items()}
    if kind == "g4":
        # Offsets are added, so the weight itself is what the reference has.
        assert np.array_equal(Reference(spec, tensors).weights[f"{name}.weight"].numpy().astype(np.float32), rounded)
        return
    integers = Reference(spec, tensors).weights[f"{name}.q"].numpy().astype(np.float32)
    assert np.array_equal(rounded, integers * parts["scale"][:, None])
    assert 100 < np.abs(integers).max() <= 127


def test_nothing_is_moved_when_inputs_are_independent():
    """A diagonal A leaves no error to pass on: plain rounding is the best there is."""
    weight, mask, _ = problem(16, 32, True)
    mask[:] = True
    _, _, tensors = round_weights(weight, mask, np.diag(np.linspace(1, 9, 32)), "s8")
    _, plain = quantize_linear(weight, "s8", mask)
    assert np.array_equal(tensors["tiles"], plain["tiles"])
