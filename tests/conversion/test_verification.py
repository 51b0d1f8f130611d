"""A conversion compares what it wrote with the original: what the engine computes otherwise is refused, what int8 costs
is said."""

from __future__ import annotations

import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, build_checkpoint
from originals import assert_close, converted, edit_json, transformers_logits
from safetensors.numpy import load_file, save_file

pytest.importorskip("transformers", reason="the original is transformers")

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.errors import CheckpointError, CheckpointWarning
from approxrt.models import bert, distilbert
from approxrt.models.checkpoint import load_checkpoint


def rewrite(folder: Path, weights: dict[str, np.ndarray]) -> None:
    save_file(weights, folder / "new.safetensors", {"format": "pt"})
    shutil.move(folder / "new.safetensors", folder / "model.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plain", [False, True])
def test_a_sound_conversion_is_measured(tmp_path: Path, family: str, plain: bool) -> None:
    folder = build_checkpoint(family, tmp_path / "c", plain=plain)
    exact = read_artifact(approxrt.convert(folder, tmp_path / "exact", bits=32)).card["fidelity"]
    assert exact["cosine"] == pytest.approx(1.0, abs=1e-4)
    assert exact["flips"] == (None if plain else 0.0)


def test_what_the_engine_computes_otherwise_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A converter that reads something wrong, here a layer norm's epsilon, writes nothing."""
    folder = build_checkpoint("distilbert", tmp_path / "c")
    monkeypatch.setattr(distilbert, "FAMILY", dataclasses.replace(distilbert.FAMILY, layer_norm_eps=0.05))
    with pytest.raises(CheckpointError, match=r"answers differ from transformers' by .* nothing was written"):
        approxrt.convert(folder, tmp_path / "a")
    assert [item.name for item in tmp_path.iterdir()] == ["c"]


def test_an_artifact_that_is_there_outlives_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_checkpoint("bert", tmp_path / "c")
    out = approxrt.convert(folder, tmp_path / "a", bits=32)
    before = approxrt.load(out).logits("a film")
    keys = dataclasses.replace(bert.FAMILY.keys, activation="other_act")
    monkeypatch.setattr(bert, "FAMILY", dataclasses.replace(bert.FAMILY, keys=keys))
    edit_json(folder / "config.json", other_act="relu")
    with pytest.raises(CheckpointError, match="differ from transformers'"):
        approxrt.convert(folder, tmp_path / "a", bits=32, overwrite=True)
    assert (approxrt.load(out).logits("a film") == before).all()


def test_outliers_that_int8_does_not_survive_are_said(tmp_path: Path) -> None:
    """Two value channels a thousand times larger, undone by the next linear: float32 answers stay what they are."""
    folder = build_checkpoint("bert", tmp_path / "c", plain=True, pooling="mean", hidden=128)
    weights = load_file(folder / "model.safetensors")
    for i in range(2):
        at = f"encoder.layer.{i}.attention"
        for part in ("weight", "bias"):
            weights[f"{at}.self.value.{part}"][[5, 77]] *= 1000
        weights[f"{at}.output.dense.weight"][:, [5, 77]] /= 1000
    rewrite(folder, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        approxrt.convert(folder, tmp_path / "exact", bits=32)
    with pytest.warns(CheckpointWarning, match=r"strays from the float32 model on 12 built-in sentences \(cosine"):
        out = approxrt.convert(folder, tmp_path / "int8")
    texts = ["a gripping film", "two hours that nobody will get back"]
    cosines = (approxrt.load(out).embed(texts) * approxrt.load(tmp_path / "exact").embed(texts)).sum(axis=1)
    assert cosines.min() < 0.98, "the warning is not about nothing"


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "model.", "_orig_mod.module."])
@pytest.mark.parametrize("plain", [False, True])
def test_prefixes_of_training_frameworks(tmp_path: Path, wrapper: str, plain: bool) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", plain=plain)
    texts = ["a film", ("a gripping film", "bad")]
    expected = None if plain else transformers_logits(folder, texts)
    vectors = converted(folder).embed(texts)
    weights = load_file(folder / "model.safetensors")
    extra = {"loss.weight": np.ones(3, np.float32)}
    rewrite(folder, {f"{wrapper}{name}": array for name, array in weights.items()} | extra)
    assert load_checkpoint(folder).wrapper == wrapper
    model = converted(folder)
    assert_close(model.embed(texts), vectors)
    if expected is not None:
        assert_close(model.logits(texts), expected)


def test_names_of_weights_from_tensorflow(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c")
    expected = converted(folder).logits("a film")
    weights = load_file(folder / "model.safetensors")
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, old in older.items():
        weights = {name.replace(new, old): array for name, array in weights.items()}
    rewrite(folder, weights)
    assert_close(converted(folder).logits("a film"), expected)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"model_max_length": 2}, "cannot read ordinary sentences, so nothing was written: .*leaves no room"),
        ({"sep_token": "[END]"}, r"puts '\[END\]' \(id \d+\) around every text, and the embedding table has \d+ rows"),
    ],
)
def test_a_tokenizer_that_reads_nothing(tmp_path: Path, settings: dict, named: str) -> None:
    """Every text would fail, so the conversion does."""
    folder = build_checkpoint("bert", tmp_path / "c")
    edit_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        with pytest.raises(CheckpointError, match=named):
            approxrt.convert(folder, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_prefix_that_nobody_knows_is_named(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c")
    weights = load_file(folder / "model.safetensors")
    rewrite(folder, {f"teacher.{name}": array for name, array in weights.items()})
    with pytest.raises(CheckpointError, match=r"tensors are called teacher\.bert\.\.\.\.; bert\.\.\.\. or no prefix"):
        load_checkpoint(folder)


@pytest.mark.parametrize("plain", [False, True])
def test_a_config_without_architectures(tmp_path: Path, plain: bool) -> None:
    """A classifier if the weights have its head, else an encoder, whose mean is taken."""
    folder = build_checkpoint("bert", tmp_path / "c", plain=plain)
    edit_json(folder / "config.json", architectures=...)
    spec = load_checkpoint(folder).spec
    assert bool(spec.labels) != plain and spec.head.pooling == ("mean" if plain else "cls")


@pytest.mark.parametrize("labels", [10**30, 0, -1, True, "x"])
def test_numbers_of_labels_that_no_model_has(tmp_path: Path, labels: object) -> None:
    """transformers would make a name for each."""
    folder = build_checkpoint("bert", tmp_path / "c")
    edit_json(folder / "config.json", num_labels=labels, id2label=...)
    with pytest.raises(CheckpointError, match="num_labels is"):
        load_checkpoint(folder)


def test_files_get_the_umask_s_mode(tmp_path: Path) -> None:
    import os

    folder = build_checkpoint("bert", tmp_path / "c")
    before = os.umask(0o027)
    try:
        out = approxrt.convert(folder, tmp_path / "a")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in out.iterdir()} == {"0o640"}
    assert out.stat().st_mode & 0o777 == 0o750
    assert json.loads((out / "card.json").read_text())["fidelity"]["sentences"] == 12
