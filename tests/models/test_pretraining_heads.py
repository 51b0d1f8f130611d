"""Checkpoints with the head that a language model was trained with, or with none: the encoder, pooled by mean."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, build_checkpoint
from sentences import write_data

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.errors import CheckpointWarning
from approxrt.models.checkpoint import load_checkpoint
from approxrt.training.finetune import FinetuneOptions, finetune

torch = pytest.importorskip("torch", reason="compares with transformers, which needs torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

from approxrt.runtime.reference.encoder import reference_embeddings  # noqa: E402

TOLERANCE = 3e-10  # derived in test_models.py


@pytest.mark.parametrize("auto", ["AutoModelForMaskedLM", "AutoModelForPreTraining"])
@pytest.mark.parametrize("family", [*FAMILIES, "xlm-roberta"])
def test_vectors_are_the_mean_of_the_encoder_s_states(tmp_path: Path, family: str, auto: str) -> None:
    folder = build_checkpoint(family, tmp_path / "c", auto=auto)
    with pytest.warns(CheckpointWarning, match=r"its pre-training head \(\w+\) is left out \("):
        artifact = read_artifact(approxrt.convert(folder, tmp_path / "a", bits=32))
    assert (artifact.spec.task_type, artifact.spec.labels, artifact.spec.head.pooling) == ("embedding", (), "mean")
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    ids = [[5], [7, 9, 11], list(range(5, 40))]
    ours = reference_embeddings(artifact.spec, artifact.tensors, ids)
    for row, sequence in zip(ours, ids, strict=True):
        with torch.no_grad():
            theirs = model(input_ids=torch.tensor([sequence])).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(row, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


def test_the_card_names_what_is_left_out(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", auto="AutoModelForPreTraining")
    with pytest.warns(CheckpointWarning, match=r"BertForPreTraining\) is left out \(.* and \d more\)"):
        card = read_artifact(approxrt.convert(folder, tmp_path / "a")).card
    assert card["assumed"]["pooling"] == "mean"
    assert {"cls.seq_relationship.weight", "cls.predictions.bias"} <= set(card["assumed"]["unused_tensors"])
    assert all(not name.startswith("bert.encoder") for name in card["assumed"]["unused_tensors"])


def test_a_bare_encoder_is_said_to_be_pooled_by_mean(tmp_path: Path) -> None:
    bare = build_checkpoint("bert", tmp_path / "bare", plain=True)
    with pytest.warns(CheckpointWarning, match="says nothing of how its hidden states become one vector"):
        artifact = read_artifact(approxrt.convert(bare, tmp_path / "a"))
    assert artifact.card["assumed"] == {
        "pooling": "mean",
        "unused_tensors": ["pooler.dense.bias", "pooler.dense.weight"],
    }


def test_a_folder_that_says_it_is_not_warned_of(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", plain=True, pooling="mean")
    with warnings.catch_warnings():
        warnings.simplefilter("error", CheckpointWarning)
        assert "assumed" not in read_artifact(approxrt.convert(folder, tmp_path / "a")).card


@pytest.mark.parametrize("family", ["roberta", "electra"])
def test_fine_tuning_starts_from_them(tmp_path: Path, family: str) -> None:
    auto = "AutoModelForPreTraining" if family == "electra" else "AutoModelForMaskedLM"
    folder = build_checkpoint(family, tmp_path / "c", auto=auto, layers=1)
    data = write_data(tmp_path)
    finetune(folder, "csv", data, tmp_path / "out", FinetuneOptions(epochs=1, batch_size=16))
    spec = load_checkpoint(tmp_path / "out").spec
    assert spec.task_type == "classification" and len(spec.labels) == 2
