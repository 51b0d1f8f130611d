"""match-signs: codes that find what attention weighs, the f32 model behind an artifact, layers, report, refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

torch = pytest.importorskip("torch", reason="codes are fitted in torch")

from decoders import build_decoder, small_decoder_spec  # noqa: E402
from families import CORPUS  # noqa: E402
from random_decoders import InMemory, tokens  # noqa: E402
from specs import random_tensors  # noqa: E402

import approxrt  # noqa: E402
from approxrt.artifact.reader import read_artifact  # noqa: E402
from approxrt.cli.main import app  # noqa: E402
from approxrt.errors import ApproxrtError, DataError, InputError  # noqa: E402
from approxrt.runtime.cpu.decoder_engine import DecoderEngine  # noqa: E402
from approxrt.runtime.reference.decoder import DecoderReference  # noqa: E402
from approxrt.sign_attention import decoder_search as lm_signs  # noqa: E402
from approxrt.sign_attention.codes import Kept, codes_for, dense, fit_codes, with_codes  # noqa: E402
from approxrt.torch_models.decoder import TorchDecoder  # noqa: E402


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "train.txt"
    rng = np.random.default_rng(0)
    path.write_text(" ".join(CORPUS[i] for i in rng.integers(0, len(CORPUS), 600)))
    return path


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    build_decoder("llama", folder / "checkpoint", positions=512)
    return approxrt.convert(folder / "checkpoint", folder / "int8")


def test_codes_for() -> None:
    assert [codes_for(d) for d in (64, 32, 128, 80, 192, 193, 300)] == [192, 192, 128, 160, 192, 0, 0]


@pytest.mark.parametrize("kind", ["f32", "s8", "bsr_s8", "s4", "bsr_s4"])
@pytest.mark.parametrize("words", ["f32", "s8", "s4"])
def test_the_model_behind_an_artifact(kind: str, words: str) -> None:
    spec = small_decoder_spec(kind, embedding_kind=words)
    tensors = random_tensors(spec)
    plain, weights = dense(spec, tensors)
    ids = tokens(30)
    got = DecoderReference(plain, weights).next_logits(ids)
    want = DecoderReference(spec, tensors).next_logits(ids)
    # The reference rounds activations where linears are quantised.
    assert np.abs(got - want).max() <= (1e-6 if kind == words == "f32" else 0.05) * np.abs(want).max()


def test_codes_find_what_attention_weighs() -> None:
    """Keys with a common offset and few large directions: plain signs see little of them."""
    spec = small_decoder_spec("f32", hidden=48, max_positions=512)
    spec = dataclasses.replace(spec, layers=tuple(dataclasses.replace(l, head_dim=16) for l in spec.layers))
    tensors = random_tensors(spec)
    for name in tensors:
        if name.endswith(("query.weight", "key.weight")):
            tensors[name] = tensors[name] * 8
        if name.endswith("key.bias"):
            tensors[name] = tensors[name] + 3
    texts = [tokens(400, seed) for seed in (1, 2)]
    found = fit_codes(TorchDecoder(spec, tensors), texts, Kept(40, 4))
    few = fit_codes(TorchDecoder(spec, tensors), texts, Kept(40, 4, 16))
    assert set(found) == {0, 1}
    for i, codes in found.items():
        assert codes.rotation.shape == (2, 192, 16) and codes.centre.shape == (2, 16)
        # Each block of 16 rows is orthogonal.
        block = codes.rotation[0, :16]
        np.testing.assert_allclose(block @ block.T, np.eye(16), atol=1e-5)
        assert codes.held > few[i].held > 0.3
    matched_spec, matched = with_codes(spec, tensors, found, Kept(40, 4), 64)
    ids = tokens(300, 7)
    engine, exact = DecoderEngine(InMemory(matched_spec, matched), 1), DecoderEngine(InMemory(spec, tensors), 1)
    a, b = (e.step([e.cache(300)], [ids], True) for e in (engine, exact))
    np.testing.assert_array_equal(a[:63], b[:63])
    change = np.abs(a[64:] - b[64:]).mean() / np.abs(b[64:]).mean()
    assert 0 < change < 0.2
    back, rest = with_codes(matched_spec, matched, {}, Kept(40, 4), 64)
    assert back == spec and set(rest) == set(tensors)


def paying(*_: Any) -> dict[int, tuple[float, float]]:
    return {256: (1.0, 0.5), 384: (1.0, 0.5)}


def test_match_signs(artifact: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_signs, "time_kernels", paying)
    monkeypatch.setattr(lm_signs, "_rates", lambda *_: (100.0, 150.0))
    said: list[str] = []
    report = lm_signs.match_signs(
        artifact, text, tmp_path / "out", keep=64, window=8, context=400, max_drop=0.5, log=said.append
    )
    assert report.met and report.layers and report.sign_from == 256 and report.codes == 192
    assert report.chosen["perplexity"] <= 1.5 * report.dense["perplexity"]
    made = read_artifact(tmp_path / "out")
    keeps = [layer.attention_keep for layer in made.decoder_spec.layers]
    assert [i for i, keep in enumerate(keeps) if keep == 64] == list(report.layers)
    assert made.card["sign_matching"]["context"] == 400
    assert approxrt.load(tmp_path / "out").generate("a fine film", max_new_tokens=3)
    result = CliRunner().invoke(app, ["inspect", str(tmp_path / "out")])
    assert "keep 64 keys in texts from 256 tokens on" in result.output


def test_layers_that_do_harm_go_back(
    artifact: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lm_signs, "time_kernels", paying)
    values = iter([10.0, 12.0, 10.2, 10.05])
    monkeypatch.setattr(lm_signs, "perplexity", lambda *_: {"perplexity": next(values)})
    report = lm_signs.match_signs(artifact, text, tmp_path / "out", keep=64, context=400, max_drop=0.001)
    assert not report.met and report.layers == () and not (tmp_path / "out").exists()
    assert report.shortfalls == ("no layer can match signs within 0.10 % of perplexity",)


def test_where_it_does_not_pay(artifact: Path, text: Path, tmp_path: Path) -> None:
    """A context just above what a query keeps: kernels are timed for real, and there is nothing to gain."""
    result = CliRunner().invoke(
        app,
        ["match-signs", str(artifact), "--data", str(text), "--out", str(tmp_path / "o"), "--keep", "128", "--context",
         "256", "--json"],
    )  # fmt: skip
    assert result.exit_code == 1 and not (tmp_path / "o").exists()
    report = json.loads(result.stdout)
    assert not report["met"] and "not faster" in report["shortfalls"][0]


def test_break_even() -> None:
    assert lm_signs.starting_from({512: (1, 2), 1024: (2, 1.7), 2048: (4, 2)}, 128) == 1024
    assert lm_signs.starting_from({512: (1, 0.5), 1024: (2, 1)}, 600) == 601
    assert lm_signs.starting_from({512: (1, 0.5), 1024: (2, 1.9)}, 128) is None
    assert lm_signs.starting_from({}, 128) is None


@pytest.mark.parametrize(("changes", "words"), [
    ({"keep": 0}, "keep is 0"),
    ({"window": -1}, "window is -1"),
    ({"context": 513}, "context is 513; it must be an integer from 256 .* 512 positions"),
    ({"context": 200}, "context is 200"),
    ({"max_drop": float("nan")}, "max_drop is nan"),
])  # fmt: skip
def test_bad_numbers(artifact: Path, text: Path, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        lm_signs.match_signs(artifact, text, tmp_path / "out", **changes)


def test_bad_input(artifact: Path, text: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a fine film " * 20)
    with pytest.raises(DataError, match="800 are needed"):
        lm_signs.match_signs(artifact, tmp_path / "short.txt", tmp_path / "out", context=400)
    with pytest.raises(ApproxrtError, match="nowhere"):
        lm_signs.match_signs(tmp_path / "nowhere", text, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(ApproxrtError, match="full"):
        lm_signs.match_signs(artifact, text, tmp_path / "full", overwrite=True)
