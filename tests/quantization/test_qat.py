"""Fine-tuning with int8 weights and activations: what comes out is on the grid, and is what convert finds again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, build_checkpoint
from sentences import write_data

torch = pytest.importorskip("torch", reason="fine-tuning needs torch")
pytest.importorskip("transformers", reason="fine-tuning needs transformers")

import approxrt  # noqa: E402
from approxrt.errors import InputError  # noqa: E402
from approxrt.models.checkpoint import load_checkpoint  # noqa: E402
from approxrt.models.classifier import load_classifier  # noqa: E402
from approxrt.quantization.qat import quantize_module, round_weights  # noqa: E402
from approxrt.quantization.rtn import dequantize, quantize_rows  # noqa: E402
from approxrt.training.finetune import FinetuneOptions, finetune  # noqa: E402


@pytest.mark.parametrize("family", FAMILIES)
def test_every_encoder_linear(family: str, tmp_path: Path) -> None:
    folder = build_checkpoint(family, tmp_path / "c", hidden=32, heads=2, ffn=48, num_labels=2)
    model = load_classifier(folder, ("a", "b")).eval()
    ids = torch.tensor([[4, 5, 6, 7]])
    plain = model(input_ids=ids).logits
    names = set(model.state_dict())
    quantize_module(model)
    assert set(model.state_dict()) == names
    hooked = model(input_ids=ids).logits
    assert 0 < float((hooked - plain).detach().abs().max()) < 0.3
    round_weights(model)
    torch.testing.assert_close(model(input_ids=ids).logits, hooked, rtol=0, atol=1e-4)
    hooked.sum().backward()
    layers = [p for n, p in model.named_parameters() if ".layer." in n and n.endswith("weight") and p.ndim == 2]
    assert len(layers) == 12 and all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in layers)


def test_finetuned_checkpoint_is_on_the_grid(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", train=200)
    base = build_checkpoint("bert", tmp_path / "b", hidden=32, heads=2, layers=1, ffn=64, plain=True, positions=64)
    options = FinetuneOptions(epochs=2, lr=5e-3, batch_size=16, val_fraction=0.2, qat=8)
    finetune(base, "csv", data, tmp_path / "qat", options)
    assert json.loads((tmp_path / "qat" / "finetune.json").read_text())["options"]["qat"] == 8
    checkpoint = load_checkpoint(tmp_path / "qat")
    for name in ("layers.0.ffn.up.weight", "layers.0.attention.query.weight", "embeddings.word.weight"):
        weight = checkpoint.tensors[name]
        np.testing.assert_allclose(dequantize(*quantize_rows(weight)), weight, rtol=0, atol=1e-6 * np.abs(weight).max())
    approxrt.convert(tmp_path / "qat", tmp_path / "a")
    approxrt.convert(tmp_path / "qat", tmp_path / "f", bits=32)
    texts = ["a great film", "the awful room"]
    got, want = (approxrt.load(tmp_path / x).logits(texts) for x in ("a", "f"))
    # Activations alone are rounded now.
    np.testing.assert_allclose(got, want, rtol=0, atol=0.1 * np.abs(want).max())


def test_options() -> None:
    with pytest.raises(InputError, match="qat is 4"):
        FinetuneOptions(qat=4).check()
    with pytest.raises(InputError, match="precision is 'f16'"):
        FinetuneOptions(precision="f16").check()
