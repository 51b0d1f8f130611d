"""Where config.json and the weights disagree: transformers' answer, or a refusal that names the difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import build_decoder
from safetensors.numpy import load_file, save_file

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.errors import CheckpointError, CheckpointWarning, InputError, UnsupportedModelError
from approxrt.models.decoder import load_decoder
from approxrt.runtime.reference.decoder import DecoderReference

IDS = np.random.default_rng(0).integers(0, 300, 60).tolist()


def edit(folder: Path, **changes: Any) -> Path:
    """Change config.json; None takes a key away."""
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    return folder


def edit_tensors(folder: Path, **changes: np.ndarray | None) -> Path:
    tensors = load_file(folder / "model.safetensors")
    for name, array in changes.items():
        tensors.pop(name, None)
        if array is not None:
            tensors[name] = array
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def theirs(folder: Path, ids: list[int] = IDS) -> np.ndarray:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].numpy()


def ours(folder: Path, ids: list[int] = IDS) -> np.ndarray:
    checkpoint = load_decoder(folder, folder)
    return DecoderReference(checkpoint.spec, checkpoint.tensors).next_logits(ids)[-1]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
def test_a_head_of_its_own_is_kept(family: str, tmp_path: Path) -> None:
    folder = build_decoder(family, tmp_path, tie_word_embeddings=False)
    edit(folder, tie_word_embeddings=True)
    assert not load_decoder(folder, folder).spec.tied_embeddings
    np.testing.assert_allclose(ours(folder), theirs(folder), atol=2e-3)


def test_a_head_that_is_the_embedding_table_is_one_with_it(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path, tie_word_embeddings=True)
    table = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(folder, **{"lm_head.weight": table})
    checkpoint = load_decoder(folder, folder)
    assert checkpoint.spec.tied_embeddings and "head.out.weight" not in checkpoint.tensors
    # The head alone stands for both.
    edit_tensors(folder, **{"model.embed_tokens.weight": None})
    checkpoint = load_decoder(folder, folder)
    assert checkpoint.spec.tied_embeddings
    np.testing.assert_array_equal(checkpoint.tensors["embeddings.word.weight"], table)
    np.testing.assert_allclose(ours(folder), theirs(folder), atol=2e-3)


def test_a_head_that_must_be_there_is_missed(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path, tie_word_embeddings=True)
    with pytest.raises(CheckpointError, match=r"lm_head\.weight' is missing"):
        load_decoder(edit(folder, tie_word_embeddings=False), folder)


def test_biases_that_the_config_denies_are_named(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path, attention_bias=True)
    edit(folder, attention_bias=False)
    with pytest.raises(CheckpointError, match=r"does not use: .*k_proj\.bias.*set attention_bias"):
        load_decoder(folder, folder)
    edit(folder, attention_bias=True)
    np.testing.assert_allclose(ours(folder), theirs(folder), atol=2e-3)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_norm.weight", "score.weight", "model.layers.2.mlp.up_proj.weight"]
)
def test_tensors_that_are_left_over_are_named(name: str, tmp_path: Path) -> None:
    folder = edit_tensors(build_decoder("llama", tmp_path), **{name: np.ones(4, np.float32)})
    with pytest.raises(CheckpointError, match=f"does not use: {name}"):
        load_decoder(folder, folder)


def test_buffers_of_older_checkpoints_are_no_weights(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path / "llama")
    edit_tensors(folder, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    load_decoder(folder, folder)
    folder = build_decoder("gpt2", tmp_path / "gpt2")
    edit_tensors(folder, **{"transformer.h.0.attn.bias": np.ones((1, 1, 4, 4), np.float32)})
    load_decoder(folder, folder)


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}},
        {"rope_parameters": LLAMA3 | {"rope_theta": 500.0}, "original_max_position_embeddings": 40},
        {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": LLAMA3},
        {"rope_parameters": None, "rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 2.5}},
        {"rope_parameters": None, "rope_theta": 700.0},
    ],
    ids=["no-original", "original-outside", "old-llama3", "old-linear", "old-theta"],
)
def test_rotary_positions_are_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    folder = edit(build_decoder("llama", tmp_path), **changes)
    np.testing.assert_allclose(ours(folder), theirs(folder), atol=2e-3)


@pytest.mark.parametrize(
    ("scaling", "named"),
    [
        ({"rope_type": "linear"}, "factor of the rotary positions is missing"),
        ({"rope_type": "linear", "factor": 0}, "factor of the rotary positions is 0"),
        ({"rope_type": "llama3", "factor": 2.0, "high_freq_factor": 4.0}, "low_freq_factor of the rotary"),
        ({"rope_type": "linear", "factor": True}, "factor of the rotary positions is True"),
        ({"full_attention": {"rope_type": "default"}}, "by kind of layer"),
        ({"rope_type": "proportional"}, "'proportional' is not supported"),
    ],
)
def test_rotary_positions_that_lack_something_are_refused(scaling: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder = edit(build_decoder("llama", tmp_path), rope_parameters=scaling, rope_theta=100.0)
    with pytest.raises(CheckpointError, match=named):
        load_decoder(folder, folder)


def test_a_linear_factor_stretches_a_short_context(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0}
    folder = edit(build_decoder("llama", tmp_path / "c"), rope_parameters=scaling)
    long = IDS * 5
    model = approxrt.load(approxrt.convert(folder, tmp_path / "a", bits=32), threads=1)
    assert model.decoder_spec.max_positions == 384 and len(long) > 128
    np.testing.assert_allclose(model.forward([long])[0], theirs(folder, long), atol=2e-3)
    edit(folder, rope_parameters=scaling | {"original_max_position_embeddings": 40})
    assert load_decoder(folder, folder).spec.max_positions == 128


@pytest.mark.parametrize(
    ("config", "tensor", "named"),
    [
        ({"quantization_config": {"quant_method": "fp8"}}, None, "fp8"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, None, "bitsandbytes"),
        ({"quantization_config": {}}, None, "an unnamed method"),
        ({}, ("model.layers.0.mlp.up_proj.qweight", np.ones((4, 4), np.int32)), "GPTQ or AWQ"),
        ({}, ("model.layers.0.mlp.up_proj.weight.absmax", np.ones(4, np.float32)), "bitsandbytes"),
        ({}, ("model.layers.0.mlp.up_proj.weight_packed", np.ones((4, 4), np.int32)), "compressed-tensors"),
        ({}, ("model.layers.0.mlp.up_proj.weight_scale_inv", np.ones(4, np.float32)), "fp8"),
    ],
)
def test_quantised_checkpoints_are_named(
    config: dict[str, Any], tensor: tuple[str, np.ndarray] | None, named: str, tmp_path: Path
) -> None:
    folder = edit(build_decoder("llama", tmp_path / "c"), **config)
    if tensor:
        edit_tensors(folder, **{tensor[0]: tensor[1]})
    with pytest.raises(UnsupportedModelError, match=f"quantised already: {named}.*supported: weights in float32"):
        approxrt.convert(folder, tmp_path / "a")


def test_a_type_of_eight_bits_is_named(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path / "c")
    path = folder / "model.safetensors"
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UnsupportedModelError, match=r"fp8 .*F8_E4M3"):
        approxrt.convert(folder, tmp_path / "a")


@pytest.mark.parametrize("head", ["MistralForCausalLM", "GemmaForCausalLM", "XLNetLMHeadModel"])
def test_other_decoders_are_named_as_decoders(head: str, tmp_path: Path) -> None:
    folder = edit(build_decoder("llama", tmp_path / "c"), model_type="other", architectures=[head])
    with pytest.raises(UnsupportedModelError, match=rf"'other' \({head}\).*supported decoders: gpt2, llama, qwen2"):
        approxrt.convert(folder, tmp_path / "a")


def test_tokens_beyond_the_embedding_table_are_named(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path / "c")
    data = json.loads((folder / "tokenizer.json").read_text())
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    data["added_tokens"].append(
        {"id": rows, "content": "<extra>", "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": True}
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(data))
    with pytest.warns(CheckpointWarning, match=rf"added tokens '<extra>' \(id {rows}\): texts with them"):
        model = approxrt.load(approxrt.convert(folder, tmp_path / "a"))
    assert model.generate("a film", max_new_tokens=2)
    with pytest.raises(InputError, match=rf"the prompt has the token '<extra>' \(id {rows}\)"):
        model.generate("a <extra> film", max_new_tokens=2)


@pytest.mark.parametrize(
    ("generation", "config", "settings", "ends"),
    [
        ({"eos_token_id": 5}, {}, {"eos_token": "</s>"}, (5, 2)),
        ({"eos_token_id": [5, 6]}, {}, {"eos_token": {"__type": "AddedToken", "content": "</s>"}}, (5, 6, 2)),
        ({}, {"eos_token_id": 7}, {}, (7,)),
        ({"eos_token_id": None}, {"eos_token_id": [7, 2]}, {"eos_token": "</s>"}, (7, 2)),
        ({"eos_token_id": 2}, {}, {"eos_token": "no such token"}, (2,)),
    ],
)
def test_every_end_counts(
    generation: dict[str, Any], config: dict[str, Any], settings: dict[str, Any], ends: tuple[int, ...], tmp_path: Path
) -> None:
    folder = edit(build_decoder("llama", tmp_path), **config)
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_decoder(folder, folder).spec.eos_token_ids == ends


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("chat_template.jinja", "{{ 1 }}"),
        ("chat_template.json", json.dumps({"chat_template": "{{ 1 }}"})),
        ("tokenizer_config.json", json.dumps({"chat_template": "{{ 1 }}"})),
        (
            "tokenizer_config.json",
            json.dumps(
                {"chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": "{{ 1 }}"}]}
            ),
        ),
    ],
)
def test_chat_templates_are_found(name: str, content: str, tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path)
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / name).write_text(content)
    assert load_decoder(folder, folder).spec.chat_template == "{{ 1 }}"


def test_factors_of_frequencies_are_in_the_artifact(tmp_path: Path) -> None:
    import dataclasses

    from decoders import small_decoder_spec
    from specs import TOKENIZER_JSON, random_tensors

    from approxrt.artifact.writer import write_artifact
    from approxrt.errors import ArtifactError

    spec = small_decoder_spec("f32")
    assert spec.rope is not None and "frequency_factors" not in spec.to_json()["rope"]
    rope = dataclasses.replace(spec.rope, frequency_factors=(1.0, 1.0, 2.0, 4.0, 8.0))
    np.testing.assert_allclose(
        rope.frequencies(10), spec.rope.frequencies(10) / np.array([1, 1, 2, 4, 8], np.float32), rtol=1e-6
    )
    spec = dataclasses.replace(spec, rope=rope)
    assert (
        read_artifact(write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, {})).any_spec == spec
    )
    for factors, named in (((1.0,), "1 entries; heads of 10 need 5"), ((1.0, 1.0, 0.0, 1.0, 1.0), "not over 0")):
        wrong = dataclasses.replace(spec, rope=dataclasses.replace(rope, frequency_factors=factors))
        with pytest.raises(ArtifactError, match=named):
            write_artifact(tmp_path / "b", wrong, random_tensors(spec), TOKENIZER_JSON, {})
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    for value in ("x", [1, 2, "3", 4, 5], [1] * 6, {"a": 1}, [10**400] * 5):
        config["model"]["rope"]["frequency_factors"] = value
        (tmp_path / "a" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ArtifactError, match="frequency_factors"):
            read_artifact(tmp_path / "a")
