"""Sign-matching attention as a layer's kind: engine, reference and model agree; sound and unsound specs; learning."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from levels import every_level
from specs import TOKENIZER_JSON, random_tensors, small_spec
from typer.testing import CliRunner

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.encoder import DENSE_ATTENTION, LayerSpec, ModelSpec
from approxrt.artifact.spec.encoder_schema import encoder_faults, encoder_from_json
from approxrt.artifact.writer import write_artifact
from approxrt.cli.main import app
from approxrt.errors import ArtifactError
from approxrt.runtime.cpu.engine import CpuEngine

torch = pytest.importorskip("torch")
from approxrt.runtime.reference.encoder import reference_hidden  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, make_batch  # noqa: E402

SEPARATOR = 7
LENGTHS = (1, 9, 39, 40, 150, 41, 530)


def sign_spec(kind: str = "f32", keep: int = 9, sign_from: int = 40, rest: bool = False) -> ModelSpec:
    """Two layers, the second of which matches signs in sequences of 40 tokens and more."""
    layer = LayerSpec(3, 16, 51, *[kind] * 6)
    spec = small_spec(kind, hidden=48, max_positions=600, max_length=600, always_kept=(SEPARATOR,))
    signs = dataclasses.replace(layer, attention_keep=keep, sign_from=sign_from, attention_rest=rest)
    return dataclasses.replace(spec, layers=(layer, signs))


def sharp_tensors(spec: ModelSpec) -> dict[str, np.ndarray]:
    """Attention that differs from key to key, so that it matters which are kept."""
    tensors = random_tensors(spec)
    for name, array in tensors.items():
        if ".query." in name or ".key." in name:
            tensors[name] = array * np.float32(12) if name.endswith(("weight", ".scale")) else array
    return tensors


def sequences(lengths: tuple[int, ...] = LENGTHS, vocab: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, vocab, n).tolist() for n in lengths]


def run(spec: ModelSpec, tensors: dict[str, np.ndarray], path: Path, threads: int = 1, **tuning: int) -> CpuEngine:
    artifact = read_artifact(write_artifact(path / "a", spec, tensors, TOKENIZER_JSON, {}))
    return CpuEngine(artifact, threads, tuning)


@every_level
@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("kind", ["f32", "s8"])
def test_hidden_states_equal_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rest: bool, isa: str
) -> None:
    monkeypatch.setenv("APPROXRT_ISA", isa)
    spec = sign_spec(kind, rest=rest)
    tensors = sharp_tensors(spec)
    engine, ids = run(spec, tensors, tmp_path), sequences()
    dense = dataclasses.replace(
        spec, layers=tuple(dataclasses.replace(layer, **DENSE_ATTENTION) for layer in spec.layers)
    )
    exact, in_full = reference_hidden(spec, tensors, ids), reference_hidden(dense, tensors, ids)
    for n, row, want, full in zip(LENGTHS, ids, exact, in_full, strict=True):
        got = engine.hidden(row)
        effect = np.abs(want - full).mean()
        assert (effect > 0) == (n >= 40)
        error = np.abs(got - want).mean(axis=1)
        # float32 and flips of int8 roundings (test_encoder.py); a sign that rounding turns may move one key of a token.
        assert np.quantile(error, 0.9) < (2e-5 if kind == "f32" else 2e-2)
        if effect:
            assert error.mean() < effect / 20


@pytest.mark.parametrize("kind", ["f32", "s8"])
def test_answers_do_not_depend_on_batch_or_threads(tmp_path: Path, kind: str) -> None:
    spec = sign_spec(kind)
    tensors, ids = sharp_tensors(spec), sequences()
    alone = run(spec, tensors, tmp_path / "1")
    want = np.concatenate([alone.forward([row], None, "logits") for row in ids])
    for threads, tuning in ((1, {}), (2, {}), (2, {"few_tokens": 600}), (2, {"group_tokens": 32})):
        engine = run(spec, tensors, tmp_path / f"{threads}{tuning}", threads, **tuning)
        np.testing.assert_array_equal(engine.forward(ids, None, "logits"), want)
        np.testing.assert_array_equal(engine.forward([ids[-1]], None, "logits"), want[-1:])


@pytest.mark.parametrize("rest", [False, True])
def test_the_model_equals_the_engine(tmp_path: Path, rest: bool) -> None:
    spec = sign_spec("f32", rest=rest)
    tensors, ids = sharp_tensors(spec), sequences()
    model = TorchEncoder(spec, tensors).eval()
    with torch.inference_mode():
        logits = model(make_batch(ids)).logits.numpy()
    np.testing.assert_allclose(logits, run(spec, tensors, tmp_path).forward(ids, None, "logits"), rtol=0, atol=2e-5)


def test_always_kept_tokens_are_kept(tmp_path: Path) -> None:
    """A value that only one key has: who attends to that key is seen in the output."""
    spec = sign_spec("f32", keep=1)
    tensors = sharp_tensors(spec)
    # No query matches the separator's signs: all of its key's are negative, those of all queries positive.
    at = "layers.1.attention"
    tensors[f"{at}.query.weight"] = np.zeros_like(tensors[f"{at}.query.weight"])
    tensors[f"{at}.query.bias"] = np.full_like(tensors[f"{at}.query.bias"], 0.5)
    ids = [[1] + [2] * 40 + [SEPARATOR] + [3] * 20]
    logits = {}
    for kept in ((), (SEPARATOR,)):
        engine = run(dataclasses.replace(spec, always_kept=kept), tensors, tmp_path / str(kept))
        logits[kept] = engine.hidden(ids[0])
        reference = reference_hidden(dataclasses.replace(spec, always_kept=kept), tensors, ids)[0]
        np.testing.assert_allclose(logits[kept], reference, rtol=0, atol=2e-5)
    assert np.abs(logits[()] - logits[(SEPARATOR,)]).max() > 1e-3


def test_training_goes_through_the_kept_keys() -> None:
    spec = sign_spec("f32", keep=3, sign_from=10)
    model, batch = TorchEncoder(spec, sharp_tensors(spec)), make_batch(sequences((30, 12, 5)))
    target = torch.tensor([0, 1, 0])
    losses = []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(15):
        loss = torch.nn.functional.cross_entropy(model(batch).logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert model.weight("layers.1.attention.query.weight").grad.abs().sum() > 0
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "changes, fault",
    [
        ({"attention_keep": 9, "sign_from": 9}, "sign_from is 9; it must be over attention_keep"),
        ({"attention_keep": 0, "sign_from": 0, "attention_rest": True}, "attention_rest is true; it must be false"),
        ({"attention_keep": 9, "sign_from": 20, "attention_rest": 1}, "attention_rest is 1; true or false is needed"),
        ({"attention_keep": 0, "sign_from": 9}, "sign_from is 9; it must be 0 where attention_keep is 0"),
        ({"attention_keep": -1, "sign_from": 9}, "attention_keep is -1; it must be between 0"),
        ({"attention_keep": 9, "sign_from": 1 << 40}, "sign_from is 1099511627776; it must be between 0"),
        ({"attention_keep": 9.5, "sign_from": 20}, "attention_keep is 9.5; an integer is needed"),
        ({"attention_keep": 9, "sign_from": 20, "head_dim": 256}, "head_dim is 256; with attention_keep it must be"),
        ({"attention_keep": 9, "sign_from": 20, "num_heads": 0}, "it must be 0 in a removed block"),
    ],
)
def test_unsound_layers_are_refused(changes: dict[str, Any], fault: str) -> None:
    spec = sign_spec()
    broken = dataclasses.replace(spec, layers=(dataclasses.replace(spec.layers[0], **changes),))
    assert any(fault in found for found in encoder_faults(broken)), encoder_faults(broken)
    data = broken.to_json()
    assert any(fault in found for found in encoder_from_json(data)[1])


@pytest.mark.parametrize(
    "tokens, fault",
    [
        ([30], "always_kept[0] is 30; it must be between 0 and 29"),
        ([-1], "always_kept[0] is -1"),
        (["a"], "always_kept[0] is 'a'; an integer is needed"),
        (list(range(65)), "always_kept has 65 entries; the limit is 64"),
        ("7", "always_kept is '7'; a list is needed"),
    ],
)
def test_unsound_tokens_are_refused(tokens: Any, fault: str) -> None:
    data = sign_spec().to_json() | {"always_kept": tokens}
    assert any(fault in found for found in encoder_from_json(data)[1]), encoder_from_json(data)[1]


def test_a_folder_keeps_the_kind_and_refuses_an_unsound_one(tmp_path: Path) -> None:
    spec = sign_spec()
    path = write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, {})
    assert read_artifact(path).spec == spec
    config = (path / "config.json").read_text()
    assert '"sign_from": 40' in config
    (path / "config.json").write_text(config.replace('"sign_from": 40', '"sign_from": 4'))
    with pytest.raises(ArtifactError, match="sign_from is 4; it must be over attention_keep"):
        read_artifact(path)


def test_inspect_names_the_layers(tmp_path: Path) -> None:
    path = write_artifact(tmp_path / "a", sign_spec(rest=True), random_tensors(sign_spec()), TOKENIZER_JSON, {})
    found = CliRunner().invoke(app, ["inspect", str(path)])
    assert found.exit_code == 0
    assert "sign matching: layers 1 keep 9 keys in texts from 40 tokens on" in found.output
    summary = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).output)
    assert summary["sign_matching"] == [{"layer": 1, "keep": 9, "sign_from": 40, "rest": True}]
