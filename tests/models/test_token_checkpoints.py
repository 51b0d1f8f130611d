"""Checkpoints whose head reads every token: what is read of them, and what is refused by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from families import FAMILIES, build_checkpoint
from safetensors.numpy import load_file, save_file

from approxrt.artifact.reader import read_artifact
from approxrt.conversion import convert
from approxrt.errors import CheckpointError, InputError
from approxrt.models.checkpoint import load_checkpoint

pytest.importorskip("transformers", reason="checkpoints are built with transformers")


def tagger(tmp_path: Path, family: str = "bert", **options) -> Path:
    return build_checkpoint(family, tmp_path / "c", **{"head": "TokenClassification", "num_labels": 5, **options})


def answerer(tmp_path: Path, family: str = "bert") -> Path:
    return build_checkpoint(family, tmp_path / "q", head="QuestionAnswering", num_labels=2)


def edit(folder: Path, **changes) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
    return folder


@pytest.mark.parametrize("family", (*FAMILIES, "albert"))
def test_labels_inputs_and_the_card(tmp_path: Path, family: str) -> None:
    names = {"0": "O", "1": "B-PER", "2": "I-PER", "3": "B-LOC", "4": "I-LOC"}
    artifact = read_artifact(convert(edit(tagger(tmp_path, family), id2label=names), tmp_path / "a"))
    assert artifact.spec.task_type == "token_classification" and artifact.spec.inputs == "single"
    assert artifact.spec.labels == tuple(names.values()) and artifact.spec.head.dense_features is None
    assert artifact.spec.head.function_to_apply == "softmax"
    assert 0 <= artifact.card["fidelity"]["flips"] <= 0.3 and artifact.card["fidelity"]["cosine"] > 0.99
    answers = read_artifact(convert(answerer(tmp_path, family), tmp_path / "b", bits=32))
    assert answers.spec.task_type == "question_answering" and answers.spec.inputs == "pair"
    assert answers.spec.labels == ("start", "end")


def test_a_question_answerer_without_architectures_is_known_by_its_head(tmp_path: Path) -> None:
    assert load_checkpoint(edit(answerer(tmp_path), architectures=...)).spec.task_type == "question_answering"


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    folder = tagger(tmp_path)
    with pytest.raises(InputError, match="inputs is 'pair'; a model for token_classification takes 'single'"):
        convert(folder, tmp_path / "a", inputs="pair")
    with pytest.raises(CheckpointError, match="approxrt_inputs is 'pair'; a head for token_classification"):
        load_checkpoint(edit(folder, approxrt_inputs="pair"))
    with pytest.raises(
        CheckpointError, match=r"'classifier.weight' has shape \[5, 64\]; config.json asks for \[2, 64\]"
    ):
        load_checkpoint(edit(folder, approxrt_inputs=..., id2label={"0": "O", "1": "X"}))
    headless = answerer(tmp_path)
    weights = {k: v for k, v in load_file(headless / "model.safetensors").items() if not k.startswith("qa_outputs")}
    save_file(weights, headless / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"'qa_outputs\.weight' is missing"):
        load_checkpoint(headless)


def test_verification_sees_a_wrong_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the engine computes is compared token by token with what transformers does."""
    from approxrt.models import checkpoint as reading

    folder = tagger(tmp_path)
    plain = reading.load_checkpoint

    def wrong(path):
        found = plain(path)
        bias = found.tensors["head.out.bias"] + np.float32([0, 0.01, 0, 0, 0])
        return dataclasses.replace(found, tensors={**found.tensors, "head.out.bias": bias})

    monkeypatch.setattr("approxrt.conversion.load_checkpoint", wrong)
    with pytest.raises(CheckpointError, match="differ from transformers' by"):
        convert(folder, tmp_path / "a", bits=32)
