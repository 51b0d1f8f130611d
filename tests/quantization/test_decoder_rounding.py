"""Rotation, smoothing and calibrated rounding of decoders: the same function, smaller errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import build_decoder, small_decoder_spec
from random_decoders import without_blocks
from specs import random_tensors

import approxrt
from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.storage.hadamard import hadamard
from approxrt.models.decoder import load_decoder
from approxrt.pruning.second_order import predicted_loss
from approxrt.quantization.calibration import Rounding, calibration, quantize_dequantize, round_decoder
from approxrt.quantization.gptq import dequantized_linear
from approxrt.quantization.rotation import can_rotate, orthogonal, rotate
from approxrt.quantization.rtn import quantize_linear
from approxrt.runtime.reference.decoder import DecoderReference
from approxrt.significance.decoder_statistics import collect_from_text
from approxrt.torch_models.decoder import TorchDecoder


def logits(spec: DecoderSpec, tensors: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    return DecoderReference(spec, tensors).next_logits(ids)


def tokens(count: int, vocab: int = 70) -> list[int]:
    return np.random.default_rng(3).integers(0, vocab, count).tolist()


def test_matrices_are_orthogonal() -> None:
    for matrix in (orthogonal(24), hadamard(16)):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(len(matrix)), atol=1e-12)
    np.testing.assert_array_equal(orthogonal(24), orthogonal(24))


@pytest.mark.parametrize("shape", ["plain", "removed", "powers of two"])
def test_rotation_changes_nothing(shape: str) -> None:
    import dataclasses

    spec = without_blocks("f32") if shape == "removed" else small_decoder_spec("f32")
    if shape == "powers of two":
        layer = dataclasses.replace(spec.layers[0], head_dim=16, intermediate_size=96)
        spec = dataclasses.replace(spec, layers=(layer,) * 2)
    tensors = random_tensors(spec)
    turned, weights = rotate(spec, tensors)
    assert not turned.tied_embeddings and turned.down_block == (32 if shape == "powers of two" else 0)
    expected = logits(spec, tensors, tokens(30))
    # Two float32 roundings of every weight.
    np.testing.assert_allclose(logits(turned, weights, tokens(30)), expected, atol=1e-5 * np.abs(expected).max())


def test_rotation_spreads_outliers() -> None:
    spec = small_decoder_spec("f32", hidden=64)
    tensors = random_tensors(spec)
    tensors["embeddings.word.weight"][:, 5] = 20.0
    turned, weights = rotate(spec, tensors)

    def peak(s: DecoderSpec, t: dict[str, np.ndarray]) -> float:
        x = TorchDecoder(s, t).embed(torch.arange(60)[None])[0]
        return float((x.abs().amax(1) / x.square().mean(1).sqrt()).mean())

    assert peak(spec, tensors) > 7 and peak(turned, weights) < 4
    gpt = small_decoder_spec("f32", positions="learned", rope=None, norm="layer")
    assert not can_rotate(gpt)
    with pytest.raises(ValueError, match="RMS norms"):
        rotate(gpt, random_tensors(gpt))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_torch_decoder_is_the_reference(family: str, tmp_path: Path) -> None:
    checkpoint = load_decoder(build_decoder(family, tmp_path), tmp_path)
    ids = tokens(40, checkpoint.spec.vocab_size)
    model = TorchDecoder(checkpoint.spec, checkpoint.tensors)
    with torch.no_grad():
        x = model.embed(torch.tensor([ids, ids[::-1]]))
        for i in range(len(checkpoint.spec.layers)):
            x = model.layer(i, x)
        got = model.head(x)[0].numpy()
    expected = logits(checkpoint.spec, dict(checkpoint.tensors), ids)
    np.testing.assert_allclose(got, expected, atol=2e-4 * np.abs(expected).max())


def test_statistics_predict_the_loss() -> None:
    """A small change of one linear: its predicted loss against the loss of sampled targets, averaged over many."""
    spec = small_decoder_spec("f32", count=1)
    tensors = random_tensors(spec)
    batch = torch.from_numpy(np.random.default_rng(0).integers(0, 70, (6, 40)))
    stats = collect_from_text(TorchDecoder(spec, tensors), batch).linears
    assert set(stats) == {name for name, _ in spec.linears()} | {"head.out"}
    name = "layers.0.ffn.up"
    change = np.random.default_rng(1).standard_normal(tensors[f"{name}.weight"].shape).astype(np.float32)
    assert predicted_loss(2 * change, stats[name]) == pytest.approx(4 * predicted_loss(change, stats[name]))
    assert predicted_loss(change, stats[name]) > 0


@pytest.mark.parametrize("kind", ["s8", "s4"])
def test_rounding_by_text_beats_plain_rounding(kind: Any) -> None:
    spec = small_decoder_spec("f32", hidden=64, tied_embeddings=False, head_kind="f32")
    tensors = random_tensors(spec)
    # Inputs that depend on each other, which is what there is to make use of.
    words = np.random.default_rng(0).standard_normal((70, 6)) @ np.random.default_rng(1).standard_normal((6, 64))
    tensors["embeddings.word.weight"] = words.astype(np.float32)
    batch = torch.from_numpy(np.random.default_rng(2).integers(0, 70, (8, 48)))
    chosen = {"layers.0.ffn.gate": kind}
    rounded, weights = round_decoder(spec, tensors, Rounding(chosen), batch)
    assert dict(rounded.linears())["layers.0.ffn.gate"].kind == kind
    assert dict(rounded.linears())["layers.0.ffn.up"].kind == "f32"
    weight = tensors["layers.0.ffn.gate.weight"]
    inputs = []
    model = TorchDecoder(spec, tensors)

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        if name == "layers.0.ffn.gate":
            inputs.append(quantize_dequantize(x).reshape(-1, 64).numpy())
        return model.linear(name, x)

    with torch.no_grad():
        model.layer(0, model.embed(batch), linear)
    ours = {part: weights[f"layers.0.ffn.gate.{part}"] for part in ("q", "q4", "group_scale", "scale")
            if f"layers.0.ffn.gate.{part}" in weights}  # fmt: skip
    _, plain = quantize_linear(weight, kind)
    errors = [
        np.square(inputs[0] @ (dequantized_linear(parts, *weight.shape) - weight).T).mean() for parts in (ours, plain)
    ]
    assert errors[0] < 0.7 * errors[1]


def test_calibration_pieces() -> None:
    batch = calibration(list(range(100)), 4, 20)
    assert batch.shape == (4, 20) and batch[0, 0] == 0 and batch[-1, -1] == 99
    assert calibration(list(range(30)), 4, 20).shape == (1, 20)
    with pytest.raises(ValueError, match="19 tokens"):
        calibration(list(range(19)), 4, 20)


def test_convert_rotates(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path / "checkpoint", tie_word_embeddings=True)
    path = approxrt.convert(folder, tmp_path / "a", bits=8)
    assert json.loads((path / "card.json").read_text())["method"]["activations"] == "rotated"
    plain = approxrt.load(approxrt.convert(folder, tmp_path / "b", bits=32))
    ids = [tokens(50, 100)]
    exact, ours = plain.forward(ids), approxrt.load(path).forward(ids)
    assert np.abs(ours - exact).mean() < 0.1 * exact.std()
