"""convert's last look: sound conversions pass, others are refused and leave nothing behind."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import DECODERS, build_decoder

import approxrt
import approxrt.conversion
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import write_artifact
from approxrt.errors import CheckpointError, CheckpointWarning
from approxrt.models import llama
from approxrt.models.decoder import load_decoder
from approxrt.runtime.reference.decoder import DecoderReference
from approxrt.verification.decoder import BOUNDS, reference_logits, verify_decoder

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in DECODERS),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1, "hidden_act": "gelu"}),
    ("llama", {"hidden_act": "relu", "tie_word_embeddings": True, "head_dim": 24}),
    ("gpt2", {"activation_function": "gelu"}),
]


@pytest.mark.parametrize(("family", "options"), VARIANTS)
def test_the_reference_is_the_other_one(family: str, options: dict[str, Any], tmp_path: Path) -> None:
    folder = build_decoder(family, tmp_path, **options)
    checkpoint = load_decoder(folder, folder)
    ids = np.random.default_rng(0).integers(0, checkpoint.spec.vocab_size, 40).tolist()
    expected = DecoderReference(checkpoint.spec, checkpoint.tensors).next_logits(ids)[-1]
    found = reference_logits(checkpoint.spec, checkpoint.tensors, ids)
    # float32 against float64: sums of some hundred terms over two layers
    np.testing.assert_allclose(found, expected, atol=300 * 1.2e-7 * np.abs(expected).max())


@pytest.mark.parametrize("family", DECODERS)
def test_sound_conversions_pass(family: str, tmp_path: Path) -> None:
    folder = build_decoder(family, tmp_path / "c")
    checkpoint = load_decoder(folder, folder)
    for bits in (32, 8, 5, 4):
        path = approxrt.convert(folder, tmp_path / str(bits), bits=bits)
        found = verify_decoder(path, checkpoint, bits)["fidelity"]
        assert read_artifact(path).card["fidelity"] == found
        if bits in BOUNDS:
            assert found["logit_error"] < BOUNDS[bits] / 4
        else:
            assert found["logit_error"] is None
    path = approxrt.convert(folder, tmp_path / "pruned", bits=8, density=0.25)
    assert verify_decoder(path, checkpoint, 8, pruned=True)["fidelity"]["logit_error"] is None


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("change", ["swapped rows", "no bias", "another table"])
def test_another_model_is_refused(bits: int, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_decoder("qwen2", tmp_path / "c")

    def spoilt(spec: Any, tensors: Any, *rest: Any) -> Any:
        out = dict(tensors)
        if change == "swapped rows":  # as llama.cpp stores them
            name = "layers.0.attention.query.weight"
            out[name] = out[name].reshape(4, 2, 8, -1).swapaxes(1, 2).reshape(out[name].shape)
            name = "layers.1.ffn.down.weight"
            out[name] = out[name][::-1].copy()
        elif change == "no bias":
            out = {name: np.zeros_like(a) if name.endswith(".bias") else a for name, a in out.items()}
        else:
            out["embeddings.word.weight"] = np.roll(out["embeddings.word.weight"], 1, axis=0)
        return original(spec, out, *rest)

    original = approxrt.conversion._quantize
    monkeypatch.setattr(approxrt.conversion, "_quantize", spoilt)
    if bits == 8 and change == "no bias":
        # Half of what is said is still right: within what 8 bits may cost.
        approxrt.convert(folder, tmp_path / "a", bits=bits)
        return
    with pytest.raises(CheckpointError, match="does not answer as the checkpoint does"):
        approxrt.convert(folder, tmp_path / "a", bits=bits)
    assert not (tmp_path / "a").exists()


def test_logits_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path / "c")
    checkpoint = load_decoder(folder, folder)
    tensors = dict(checkpoint.tensors)
    tensors["layers.1.ffn.down.weight"] = np.full_like(tensors["layers.1.ffn.down.weight"], 3e38)
    path = write_artifact(tmp_path / "a", checkpoint.spec, tensors, checkpoint.tokenizer_json, {})
    with pytest.raises(CheckpointError, match="are no numbers"):
        verify_decoder(path, checkpoint, 32, pruned=True)


def test_a_config_that_means_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that reads an epsilon wrong agrees with itself; transformers does not."""
    folder = build_decoder("llama", tmp_path / "c")
    build = llama.build

    def misread(config: Any, weights: Any) -> Any:
        spec, tensors = build(config, weights)
        return dataclasses.replace(spec, norm_eps=0.05), tensors

    monkeypatch.setattr(llama, "build", misread)
    with pytest.raises(CheckpointError, match=r"the logits differ from transformers' by .* nothing was written"):
        approxrt.convert(folder, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_tokenizer_config_is_obeyed(tmp_path: Path) -> None:
    """The class decides what stands around a text, not the file."""
    import transformers

    folder = build_decoder("llama", tmp_path / "c")
    data = json.loads((folder / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(data))
    for name in ("PreTrainedTokenizerFast", "GPT2Tokenizer"):
        settings = {"tokenizer_class": name, "eos_token": "</s>", "bos_token": "<s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CheckpointWarning)
            model = approxrt.load(approxrt.convert(folder, tmp_path / "a", overwrite=True))
        original = transformers.AutoTokenizer.from_pretrained(folder)
        for text in ("A Good Film", "the 42 \n\n towns"):
            assert model.tokenize(text) == original(text)["input_ids"]
