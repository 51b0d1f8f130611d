"""Decoder checkpoints to specs: logits of the reference against transformers, conversions, refusals, damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import CHAT_TEMPLATE, DECODERS, build_decoder, small_decoder_spec
from specs import TOKENIZER_JSON, random_tensors

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.summary import summarize
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError, CheckpointError, InputError, UnsupportedModelError, UnsupportedTaskError
from approxrt.models.decoder import load_decoder
from approxrt.runtime.reference.decoder import DecoderReference

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, {}) for family in DECODERS},
    **{f"llama-{name}": ("llama", {"rope_parameters": scaling}) for name, scaling in SCALINGS.items()},
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", {"head_dim": 24}),
    "llama-one-kv": ("llama", {"num_key_value_heads": 1}),
    "gpt2-relu": ("gpt2", {"activation_function": "relu"}),
}


def transformers_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """[tokens, vocab] in float64."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()


@pytest.mark.parametrize("variant", VARIANTS)
def test_reference_has_transformers_logits(variant: str, tmp_path: Path) -> None:
    family, options = VARIANTS[variant]
    folder = build_decoder(family, tmp_path / "checkpoint", **options)
    checkpoint = load_decoder(folder, folder)
    ids = np.random.default_rng(0).integers(0, checkpoint.spec.vocab_size, 60).tolist()
    expected = transformers_logits(folder, ids)
    got = DecoderReference(checkpoint.spec, checkpoint.tensors).next_logits(ids)
    # transformers turns positions into angles in float32: 60 radians are rounded by 60 * 2^-24, and norms are scaled in
    # float32 for some families; logits are of the order of 10.
    np.testing.assert_allclose(got, expected, atol=2e-3 if family != "gpt2" else 1e-9)
    assert checkpoint.spec.eos_token_ids == (2,)
    assert checkpoint.spec.chat_template == CHAT_TEMPLATE
    assert checkpoint.spec.special_tokens == {"eos_token": "</s>", "bos_token": "<s>"}


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(("bits", "density"), [(32, 1.0), (8, 1.0), (4, 1.0), (8, 0.5), (4, 0.5)])
def test_convert_and_summary(family: str, bits: int, density: float, tmp_path: Path) -> None:
    folder = build_decoder(family, tmp_path / "checkpoint")
    artifact = read_artifact(approxrt.convert(folder, tmp_path / "out", bits=bits, density=density))
    spec = artifact.decoder_spec
    kinds = {linear.kind for name, linear in spec.linears() if name.startswith("layers.")}
    assert kinds == {
        {(32, 1): "f32", (8, 1): "s8", (4, 1): "s4", (8, 0.5): "bsr_s8", (4, 0.5): "bsr_s4"}[bits, density]
    }
    assert spec.embedding_kind == {32: "f32", 8: "s8", 4: "s4"}[bits]
    summary = summarize(artifact)
    assert summary["task_type"] == "generation" and summary["layers"] == 2
    assert abs(summary["density"] - density) < 0.05
    with pytest.raises(UnsupportedTaskError, match="decoder"):
        _ = artifact.spec


@pytest.mark.parametrize(
    ("family", "changes", "named"),
    [
        ("llama", {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("llama", {"hidden_act": "mish"}, "mish"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("qwen2", {"use_sliding_window": True}, "sliding"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_is_not_supported_is_named(family: str, changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder = build_decoder(family, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(UnsupportedModelError, match=named):
        load_decoder(folder, folder)


def test_missing_tensors_are_all_named(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"layers\.2\.input_layernorm.*layers\.2\.self_attn\.q_proj"):
        load_decoder(folder, folder)


def test_convert_refuses_inputs_and_damaged_gguf(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path / "checkpoint")
    with pytest.raises(InputError, match="decoder"):
        approxrt.convert(folder, tmp_path / "out", inputs="pair")
    pytest.importorskip("gguf", reason="the gguf package is not installed")
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match="GGUF"):
        approxrt.convert(damaged, tmp_path / "out")


@pytest.mark.parametrize("kind", ["f32", "s8", "bsr_s8", "s4", "bsr_s4"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"tied_embeddings": False, "head_kind": "s8"}, {"positions": "learned", "rope": None, "norm": "layer"}],
)
def test_artifact_round_trip(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    spec = small_decoder_spec(kind, **changes)
    tensors = random_tensors(spec)
    path = write_artifact(tmp_path / "a", spec, tensors, TOKENIZER_JSON, {})
    artifact = read_artifact(path)
    assert artifact.decoder_spec == spec
    assert all(np.array_equal(artifact.tensors[name], array) for name, array in tensors.items())


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": 1 << 40}, "hidden_size"),
    ({"norm": "batch"}, "norm"),
    ({"norm_eps": float("nan")}, "norm_eps"),
    ({"activation": "mish"}, "activation"),
    ({"positions": "learned"}, "rope"),
    ({"rope": None}, "rope"),
    ({"gated": 1}, "gated"),
    ({"eos_token_ids": (70,)}, "eos_token_ids"),
    ({"chat_template": "x" * (1 << 19)}, "chat_template"),
    ({"tied_embeddings": True, "head_kind": "s8"}, "head_kind"),
    ({"layers": ()}, "layers"),
]


@pytest.mark.parametrize(("changes", "named"), FAULTS)
def test_faulty_specs_are_refused(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    spec = small_decoder_spec(**changes)
    with pytest.raises(ArtifactError, match=named):
        write_artifact(tmp_path / "a", spec, {}, TOKENIZER_JSON, {})


def test_every_fault_of_a_hostile_config_is_listed(tmp_path: Path) -> None:
    spec = small_decoder_spec()
    path = write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, {})
    config = json.loads((path / "config.json").read_text())
    model = config["model"]
    model["hidden_size"] = -1
    model["activation"] = "exec"
    model["layers"][0]["num_kv_heads"] = 3
    model["rope"]["scaling"] = "yarn"
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path)
    for name in ("hidden_size", "activation", "num_kv_heads", "rope.scaling"):
        assert any(name in fault for fault in caught.value.faults), name


def test_removed_blocks_leave_a_bias(tmp_path: Path) -> None:
    import dataclasses

    spec = small_decoder_spec("f32")
    first = dataclasses.replace(spec.layers[0], num_heads=0, num_kv_heads=0)
    second = dataclasses.replace(spec.layers[1], intermediate_size=0)
    spec = dataclasses.replace(spec, layers=(first, second))
    names = {name for name, _, _ in spec.dense_tensors()}
    assert "layers.0.attention.output.bias" in names and "layers.0.attention.norm.weight" not in names
    assert isinstance(
        read_artifact(write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, {})).any_spec,
        DecoderSpec,
    )
