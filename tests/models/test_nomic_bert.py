"""NomicBERT: rotary positions and a gated feed-forward, in both namings of its weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint
from levels import every_level_of_linears
from originals import assert_close, edit_json
from safetensors.numpy import load_file, save_file
from sentences import write_data
from specs import random_tensors, small_spec

import approxrt
from approxrt.artifact.memory import Memory
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.encoder import LayerSpec, ModelSpec
from approxrt.artifact.spec.encoder_schema import encoder_faults, encoder_from_json
from approxrt.artifact.tensors import tensor_faults
from approxrt.errors import CheckpointError, DeviceError, UnsupportedModelError
from approxrt.models.checkpoint import load_checkpoint
from approxrt.models.nomic_bert import PARTS
from approxrt.runtime.cpu.engine import CpuEngine

torch = pytest.importorskip("torch", reason="compares with transformers, which needs torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

from approxrt.runtime.cuda.engine import CudaEngine  # noqa: E402
from approxrt.runtime.reference.encoder import reference_hidden, reference_logits  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    "head_dim 32": {"hidden": 64, "heads": 2, "ffn": 128, "layers": 3},
    "head_dim 64": {"hidden": 128, "heads": 2, "ffn": 80, "layers": 1},
    "head_dim 12": {"hidden": 48, "heads": 4, "ffn": 51},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def sequences(vocab: int, lengths: tuple[int, ...] = (1, 2, 7, 33, 64)) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, vocab, n).tolist() for n in lengths]


def run_transformers(folder: Path, ids: list[list[int]], types: list[list[int]]) -> np.ndarray:
    """float64 logits, one sequence at a time. Angles are float32 there, too."""
    factory = transformers.AutoModelForSequenceClassification
    model = factory.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        rows = [
            model(input_ids=torch.tensor([row]), token_type_ids=torch.tensor([own])).logits[0].numpy()
            for row, own in zip(ids, types, strict=True)
        ]
    return np.stack(rows)


@pytest.mark.parametrize("activation", ["silu", "gelu_new"])
@pytest.mark.parametrize("size", SIZES)
def test_logits_equal_transformers(tmp_path: Path, size: str, activation: str) -> None:
    folder = build_checkpoint("nomic_bert", tmp_path / "c", activation=activation, **SIZES[size])
    artifact = read_artifact(approxrt.convert(folder, tmp_path / "a", bits=32))
    ids = sequences(artifact.spec.vocab_size)
    types = [[0] * (len(s) // 2) + [1] * (len(s) - len(s) // 2) for s in ids]
    theirs = run_transformers(folder, ids, types)
    assert np.abs(theirs).max() > 1e-2, "a comparison of zeros shows nothing"
    # Frequencies may be a float32 step apart: at position 64 that is 64 * 6e-8 of an angle.
    ours = reference_logits(artifact.spec, artifact.tensors, ids, types)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-6 * np.abs(theirs).max())
    got = CpuEngine(artifact, 2).forward(ids, types, "logits")
    np.testing.assert_allclose(got, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_the_longest_texts(tmp_path: Path) -> None:
    folder = build_checkpoint("nomic_bert", tmp_path / "c", layers=1, positions=2048)
    artifact = read_artifact(approxrt.convert(folder, tmp_path / "a", bits=32))
    assert artifact.spec.max_positions == 2048 and not any("position" in name for name in artifact.tensors)
    ids = sequences(artifact.spec.vocab_size, (2048, 1025))
    theirs = run_transformers(folder, ids, [[0] * len(row) for row in ids])
    got = CpuEngine(artifact, 2).forward(ids, None, "logits")
    np.testing.assert_allclose(got, theirs, rtol=0, atol=2e-4 * np.abs(theirs).max())


@every_level_of_linears
@pytest.mark.parametrize("bits", [32, 8, 4])
def test_answers_do_not_depend_on_batch_threads_or_division(tmp_path: Path, isa: str, bits: int) -> None:
    folder = build_checkpoint("nomic_bert", tmp_path / "c", **SIZES["head_dim 12"])
    artifact = read_artifact(approxrt.convert(folder, tmp_path / "a", bits=bits))
    ids = sequences(artifact.spec.vocab_size)
    whole = CpuEngine(artifact, 1, isa=isa).forward(ids, None, "logits")
    exact = reference_logits(artifact.spec, artifact.tensors, ids)
    # Rounded inputs: rounding decides otherwise here and there.
    np.testing.assert_allclose(whole, exact, rtol=0, atol=(2e-5 if bits == 32 else 0.1) * np.abs(exact).max())
    for tuning in ({}, {"few_tokens": 0}, {"few_tokens": 1000}):
        engine = CpuEngine(artifact, 2, tuning, isa=isa)
        np.testing.assert_array_equal(engine.forward(ids, None, "logits"), whole)
        alone = np.concatenate([engine.forward([row], None, "logits") for row in ids])
        np.testing.assert_array_equal(alone, whole)


def test_texts_are_embedded_as_by_the_original(tmp_path: Path) -> None:
    sentence = pytest.importorskip("sentence_transformers", reason="the original is not installed (extra 'clients')")
    folder = build_checkpoint("nomic_bert", tmp_path / "c", plain=True, pooling="mean", layers=3)
    model = approxrt.load(approxrt.convert(folder, tmp_path / "a", bits=32))
    texts = ["a gripping film", "two hours that nobody will get back", "good"]
    assert_close(model.embed(texts), sentence.SentenceTransformer(str(folder), device="cpu").encode(texts))


def test_tiles_are_pruned_and_every_kind_is_stored(tmp_path: Path) -> None:
    folder = build_checkpoint("nomic_bert", tmp_path / "c")
    for bits, kind in ((8, "bsr_s8"), (4, "bsr_s4")):
        artifact = read_artifact(approxrt.convert(folder, tmp_path / str(bits), bits=bits, density=0.6))
        kinds = {name: linear.kind for name, linear in artifact.spec.linears() if name.startswith("layers.")}
        assert set(kinds.values()) == {kind} and "layers.1.ffn.gate" in kinds
        ids = sequences(artifact.spec.vocab_size)
        exact = reference_hidden(artifact.spec, artifact.tensors, ids)
        for row, states in zip(ids, exact, strict=True):
            error = CpuEngine(artifact, 1).hidden(row) - states
            assert np.sqrt(np.mean(error**2)) < 0.05 * np.sqrt(np.mean(states**2))


def test_weights_by_transformers_names(tmp_path: Path) -> None:
    """As a model without transformers' conversion on saving would have them."""
    folder = build_checkpoint("nomic_bert", tmp_path / "c")
    checkpoint = load_checkpoint(folder)
    stored = load_file(folder / "model.safetensors")
    assert any("attn.Wqkv" in name for name in stored), "transformers saves the authors' names"
    new: dict[str, np.ndarray] = {
        name: a for name, a in stored.items() if ".layers." not in name and "emb_ln" not in name
    }
    for part in ("weight", "bias"):
        new[f"nomic_bert.embeddings.LayerNorm.{part}"] = checkpoint.tensors[f"embeddings.norm.{part}"]
        for i in range(2):
            at = f"nomic_bert.layers.{i}"
            new[f"{at}.post_attention_layernorm.{part}"] = checkpoint.tensors[f"layers.{i}.attention.norm.{part}"]
            new[f"{at}.post_mlp_layernorm.{part}"] = checkpoint.tensors[f"layers.{i}.ffn.norm.{part}"]
    for i in range(2):
        for ours, theirs in PARTS.items():
            new[f"nomic_bert.layers.{i}.{theirs}.weight"] = checkpoint.tensors[f"layers.{i}.{ours}.weight"]
    save_file(
        {name: np.ascontiguousarray(a) for name, a in new.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    again = load_checkpoint(folder)
    assert again.spec == checkpoint.spec and again.source == checkpoint.source
    for name, array in checkpoint.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], array)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e3}},
            UnsupportedModelError,
            "rope_type 'dynamic' of a NomicBERT is not supported; supported: default",
        ),
        ({"rope_parameters": {"rope_theta": 0}}, CheckpointError, "rope_theta is 0; a number over 1 is needed"),
        ({"rope_parameters": 3}, CheckpointError, "rope_parameters is 3; an object is needed"),
        ({"hidden_act": "selu"}, UnsupportedModelError, "activation 'selu' .* supported: .*silu"),
        ({"intermediate_size": 97}, CheckpointError, r"mlp.gate_proj.weight' has shape \[96, 64\]"),
    ],
    ids=str,
)
def test_what_is_refused(tmp_path: Path, changes: dict, error: type[Exception], named: str) -> None:
    folder = build_checkpoint("nomic_bert", tmp_path / "c")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(error, match=named):
        load_checkpoint(folder)


def test_pruning_blocks_and_gpus_are_refused(tmp_path: Path) -> None:
    from approxrt.significance.analyze import analyze

    folder, data = build_checkpoint("nomic_bert", tmp_path / "c", num_labels=2), write_data(tmp_path / "d")
    edit_json(folder / "config.json", id2label={"0": "neg", "1": "pos"}, label2id={"neg": 0, "pos": 1})
    said = r"has a gate in its feed-forward and turns queries and keys by their positions, and {} judges.*supported: "
    with pytest.raises(UnsupportedModelError, match=said.format("compress")):
        approxrt.compress(folder, data, out=tmp_path / "o", task="csv", speedup=2)
    with pytest.raises(UnsupportedModelError, match=said.format("analyze")):
        analyze(folder, "csv", data)
    spec = gated_spec()
    with pytest.raises(DeviceError, match=r"has rotary positions and a gate in the feed-forward, .*device='cpu'"):
        CudaEngine(Memory(spec, random_tensors(spec)), "cpu")
    with pytest.raises(UnsupportedModelError, match="are not trained or pruned here"):
        TorchEncoder(spec, random_tensors(spec))


def gated_spec(**changes: Any) -> ModelSpec:
    return dataclasses.replace(small_spec("f32"), gated=True, rope_theta=1000.0, activation="silu", **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"gated": False}, "model.activation is 'silu'; it must be one of gelu, gelu_tanh, relu"),
        ({"gated": 1}, "model.gated is 1; true or false is needed"),
        ({"rope_theta": "1e3"}, "model.rope_theta is '1e3'; a number is needed"),
        ({"rope_theta": 0.5}, "model.rope_theta is 0.5; it must be 0, or over 1"),
        ({"rope_theta": float("nan")}, "model.rope_theta is nan; it must be 0, or over 1"),
        ({"position_kind": "s8"}, "model.position_kind is 's8'; with rope_theta it must be 'f32'"),
        ({"layers": (LayerSpec(2, 21, 51),)}, "heads have 21 elements; one even number is needed"),
        ({"layers": (LayerSpec(2, 20, 51), LayerSpec(2, 10, 51))}, "heads have 10, 20 elements; one even number"),
        ({"max_positions": 1 << 17, "layers": (LayerSpec(1, 256, 51),)}, "head_dim times max_positions is 33554432"),
        ({"layers": (LayerSpec(2, 20, 51, attention_keep=4, sign_from=8),)}, "attention_keep is 4; with rope_theta"),
    ],
    ids=str,
)
def test_faults_of_specs(changes: dict[str, Any], named: str) -> None:
    faults = encoder_faults(dataclasses.replace(gated_spec(), **changes))
    assert any(named in fault for fault in faults), faults


def test_specs_to_json_and_back() -> None:
    spec = gated_spec()
    assert not encoder_faults(spec) and not tensor_faults(spec, random_tensors(spec))
    assert encoder_from_json(json.loads(json.dumps(spec.to_json()))) == (spec, [])
    rounded = spec.with_linear_kinds({"layers.0.ffn.gate": "s8"})
    assert encoder_from_json(json.loads(json.dumps(rounded.to_json()))) == (rounded, [])
    plain = small_spec().to_json()
    assert not {"gated", "rope_theta"} & set(plain) and "ffn_gate" not in plain["layers"][0]
    wrong = dataclasses.replace(small_spec(), layers=(LayerSpec(2, 20, 51, ffn_gate="s8"),))
    assert any("ffn_gate is 's8'; it must be 'f32' where gated is false" in fault for fault in encoder_faults(wrong))
