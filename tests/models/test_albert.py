"""ALBERT: layers that are shared are stored, packed and rounded once, and run as often as transformers runs them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint
from levels import every_level_of_linears
from originals import edit_json
from sentences import write_data
from specs import random_tensors, small_spec

import approxrt
from approxrt.artifact.memory import Memory
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.encoder import LayerSpec
from approxrt.artifact.spec.encoder_schema import encoder_faults, encoder_from_json
from approxrt.artifact.summary import summarize
from approxrt.errors import CheckpointError, DeviceError, UnsupportedModelError
from approxrt.models.albert import layer_order
from approxrt.models.checkpoint import load_checkpoint
from approxrt.runtime.cpu.engine import CpuEngine

torch = pytest.importorskip("torch", reason="compares with transformers, which needs torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

from approxrt.runtime.cuda.engine import CudaEngine  # noqa: E402
from approxrt.runtime.reference.encoder import reference_logits  # noqa: E402

TOLERANCE = 3e-10  # derived in test_models.py; of six steps at most
SHARINGS: dict[str, dict[str, Any]] = {
    "one layer": {"layers": 4},
    "two groups": {"layers": 5, "sharing": (2, 1)},
    "two layers a group": {"layers": 3, "sharing": (1, 2), "hidden": 39, "heads": 3, "ffn": 51},
    "nothing is shared": {"layers": 2, "sharing": (2, 1)},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def sequences(vocab: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(5, vocab, n).tolist() for n in (1, 2, 7, 33, 64)]


def run_transformers(folder: Path, ids: list[list[int]]) -> np.ndarray:
    """float64 logits, one sequence at a time."""
    factory = transformers.AutoModelForSequenceClassification
    model = factory.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    with torch.no_grad():
        return np.stack([model(input_ids=torch.tensor([row])).logits[0].numpy() for row in ids])


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
@pytest.mark.parametrize("sharing", SHARINGS)
def test_logits_equal_transformers(tmp_path: Path, sharing: str, activation: str) -> None:
    folder = build_checkpoint("albert", tmp_path / "c", activation=activation, **SHARINGS[sharing])
    artifact = read_artifact(approxrt.convert(folder, tmp_path / "a", bits=32))
    ids = sequences(artifact.spec.vocab_size)
    theirs = run_transformers(folder, ids)
    ours = reference_logits(artifact.spec, artifact.tensors, ids)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())
    assert np.abs(theirs).max() > 1e-2, "a comparison of zeros shows nothing"
    got = CpuEngine(artifact, 2).forward(ids, None, "logits")
    np.testing.assert_allclose(got, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())


@every_level_of_linears
@pytest.mark.parametrize("bits", [32, 8])
def test_answers_do_not_depend_on_batch_threads_or_division(tmp_path: Path, isa: str, bits: int) -> None:
    folder = build_checkpoint("albert", tmp_path / "c", **SHARINGS["two groups"])
    artifact = read_artifact(approxrt.convert(folder, tmp_path / "a", bits=bits))
    ids = sequences(artifact.spec.vocab_size)
    whole = CpuEngine(artifact, 1, isa=isa).forward(ids, None, "logits")
    exact = reference_logits(artifact.spec, artifact.tensors, ids)
    # int8: rounding decides otherwise here and there, five steps in a row.
    np.testing.assert_allclose(whole, exact, rtol=0, atol=(2e-5 if bits == 32 else 0.1) * np.abs(exact).max())
    for tuning in ({}, {"few_tokens": 0}, {"few_tokens": 1000}):
        engine = CpuEngine(artifact, 2, tuning, isa=isa)
        np.testing.assert_array_equal(engine.forward(ids, None, "logits"), whole)
        alone = np.concatenate([engine.forward([row], None, "logits") for row in ids])
        np.testing.assert_array_equal(alone, whole)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_texts_are_embedded_as_by_the_original(tmp_path: Path, pooling: str) -> None:
    folder = build_checkpoint("albert", tmp_path / "c", plain=True, pooling=pooling, layers=3)
    model = approxrt.load(approxrt.convert(folder, tmp_path / "a", bits=32))
    texts = ["a gripping film", "Two hours that nobody will get back", "good"]
    sentence = pytest.importorskip("sentence_transformers", reason="the original")
    theirs = sentence.SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(model.embed(texts), theirs, rtol=0, atol=1e-5)


def test_a_shared_layer_is_stored_and_packed_once(tmp_path: Path) -> None:
    deep = build_checkpoint("albert", tmp_path / "deep", layers=12)
    flat = build_checkpoint("albert", tmp_path / "flat", layers=1)
    artifacts = [read_artifact(approxrt.convert(folder, tmp_path / f"{folder.name}.a")) for folder in (deep, flat)]
    assert artifacts[0].spec.layer_order == (0,) * 12 and artifacts[1].spec.layer_order == ()
    assert artifacts[0].tensor_bytes == artifacts[1].tensor_bytes
    packed = [CpuEngine(artifact, 1).info()["packed_weight_bytes"] for artifact in artifacts]
    assert packed[0] == packed[1]
    summary = summarize(artifacts[0])
    assert summary["layers"] == 12 and summary["layer_order"] == [0] * 12
    macs = {linear["name"]: linear["macs"] for linear in summary["linears"]}
    assert macs["layers.0.attention.query"] == 12 * 64 * 64 and macs["embeddings.projection"] == 32 * 64


def test_tiles_of_a_shared_layer_are_pruned_once(tmp_path: Path) -> None:
    folder = build_checkpoint("albert", tmp_path / "c", layers=3)
    artifact = read_artifact(approxrt.convert(folder, tmp_path / "a", density=0.5))
    assert {linear.kind for name, linear in artifact.spec.linears() if name.startswith("layers.")} == {"bsr_s8"}
    assert len(CpuEngine(artifact, 1).forward([[5, 6, 7]], None, "logits")) == 1


def test_the_division_of_the_depth() -> None:
    assert layer_order(4, 1, 1) == (0, 0, 0, 0)
    assert layer_order(5, 2, 1) == (0, 0, 0, 1, 1)
    assert layer_order(3, 3, 1) == (0, 1, 2)
    assert layer_order(2, 1, 2) == (0, 1, 0, 1)


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"embedding_size": 64}, UnsupportedModelError, "embedding_size 64 of an ALBERT is not supported.*supported: "),
        ({"num_hidden_groups": 9}, CheckpointError, "num_hidden_groups is 9; it must be at most num_hidden_layers, 2"),
        ({"inner_group_num": 200}, CheckpointError, "layer_order has 400 entries; the limit is 256|tensor"),
        ({"hidden_act": "gelu_10"}, UnsupportedModelError, "activation 'gelu_10'"),
    ],
)
def test_what_is_refused(tmp_path: Path, changes: dict[str, Any], error: type[Exception], named: str) -> None:
    folder = build_checkpoint("albert", tmp_path / "c")
    edit_json(folder / "config.json", **changes)
    with pytest.raises(error, match=named):
        load_checkpoint(folder)


def test_pruning_a_shared_layer_for_each_of_its_uses_is_refused(tmp_path: Path) -> None:
    from approxrt.significance.analyze import analyze

    folder, data = build_checkpoint("albert", tmp_path / "c", num_labels=2), write_data(tmp_path / "d")
    edit_json(folder / "config.json", id2label={"0": "neg", "1": "pos"}, label2id={"neg": 0, "pos": 1})
    said = r"\(albert\) runs 1 shared layers in 2 steps, and {} judges and prunes every layer by itself.*supported: "
    with pytest.raises(UnsupportedModelError, match=said.format("compress")):
        approxrt.compress(folder, data, out=tmp_path / "o", task="csv", speedup=2)
    with pytest.raises(UnsupportedModelError, match=said.format("analyze")):
        analyze(folder, "csv", data)


def test_a_gpu_is_refused() -> None:
    spec = shared_spec()
    with pytest.raises(DeviceError, match=r"has layers that are shared, .*device='cpu'"):
        CudaEngine(Memory(spec, random_tensors(spec)), "cpu")


def shared_spec(**changes: Any) -> Any:
    layer = LayerSpec(2, 20, 51)
    return dataclasses.replace(small_spec("f32"), layers=(layer, layer), layer_order=(0, 1, 1, 0), **changes)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"layer_order": (0, 2, 1)}, "layer_order[1] is 2; it must be between 0 and 1"),
        ({"layer_order": (0, 0)}, "layer_order runs layers 1 nowhere"),
        ({"layer_order": (0, 1) * 200}, "layer_order has 400 entries; the limit is 256"),
        ({"layer_order": (0, "1")}, "layer_order[1] is '1'; an integer is needed"),
        ({"layers": (LayerSpec(2, 20, 51), LayerSpec(0, 20, 51))}, "layers[1] has a removed block; with layer_order"),
    ],
)
def test_faults_of_specs(changes: dict[str, Any], named: str) -> None:
    spec = shared_spec()
    assert not encoder_faults(spec) and encoder_from_json(spec.to_json()) == (spec, [])
    faults = encoder_faults(dataclasses.replace(spec, **changes))
    assert any(named in fault for fault in faults), faults
