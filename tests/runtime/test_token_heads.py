"""Heads that read every token: the engine, the reference and the torch model give one answer a token.

f32 against transformers: as in test_encoder.py, the tolerance is a small multiple of torch's own float32 error.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from families import ALL_TYPES, build_checkpoint
from levels import EPS, every_level_of_linears
from specs import TOKENIZER_JSON, random_tensors, small_spec

import approxrt
from approxrt.artifact.reader import Artifact, read_artifact
from approxrt.artifact.spec.encoder import HeadSpec, ModelSpec
from approxrt.artifact.writer import write_artifact
from approxrt.conversion import convert
from approxrt.errors import UnsupportedTaskError
from approxrt.runtime.cpu.engine import CpuEngine

torch = pytest.importorskip("torch", reason="compares with torch")
transformers = pytest.importorskip("transformers", reason="compares with transformers")

from approxrt.runtime.reference.encoder import reference_token_logits  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, predict_tokens  # noqa: E402

LENGTHS = (1, 2, 7, 33, 64)


def sequences(vocab: int, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(2, vocab, n).tolist() for n in lengths]


def token_spec(kind: str = "f32", task: str = "token_classification", **changes) -> ModelSpec:
    labels = ("start", "end") if task == "question_answering" else ("O", "B-x", "I-x")
    inputs = "pair" if task == "question_answering" else "single"
    return small_spec(kind, task_type=task, labels=labels, inputs=inputs, head=HeadSpec("mean"), **changes)


def artifact_of(tmp_path: Path, spec: ModelSpec) -> Artifact:
    return read_artifact(write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, {}))


def transformers_logits(folder: Path, head: str, ids: list[list[int]], types: list[list[int]] | None, dtype):
    model = getattr(transformers, f"AutoModelFor{head}").from_pretrained(folder, dtype=dtype).eval()
    found = []
    with torch.no_grad():
        for i, row in enumerate(ids):
            extra = {} if types is None else {"token_type_ids": torch.tensor([types[i]])}
            out = model(input_ids=torch.tensor([row]), **extra)
            answers = head == "QuestionAnswering"
            logits = torch.stack([out.start_logits, out.end_logits], -1) if answers else out.logits
            found.append(logits[0].numpy())
    return found


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering"])
@pytest.mark.parametrize("family", ALL_TYPES)
def test_f32_logits_equal_transformers(tmp_path: Path, family: str, head: str) -> None:
    options = {"embedding": 24} if family == "electra" else {}
    labels = 2 if head == "QuestionAnswering" else 5
    folder = build_checkpoint(family, tmp_path / "c", head=head, num_labels=labels, **options)
    model = approxrt.load(convert(folder, tmp_path / "a", bits=32), threads=2)
    ids = sequences(60)
    types = None
    if head == "QuestionAnswering" and model.spec.type_vocab_size > 1:
        types = [[0] * (len(row) // 2) + [1] * (len(row) - len(row) // 2) for row in ids]
    ours = np.concatenate(model.forward_tokens(ids, types))
    truth, single = (
        np.concatenate(transformers_logits(folder, head, ids, types, t)) for t in (torch.float64, torch.float32)
    )
    largest = np.abs(truth).max()
    assert largest > 1e-2, "a comparison of zeros shows nothing"
    np.testing.assert_allclose(ours, truth, rtol=0, atol=8 * max(np.abs(single - truth).max(), 8 * EPS * largest))


@every_level_of_linears
@pytest.mark.parametrize("task", ["token_classification", "question_answering"])
@pytest.mark.parametrize("kind", ["f32", "s8", "bsr_s8", "s4"])
def test_every_kind_equals_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, task: str, isa: str
) -> None:
    monkeypatch.setenv("APPROXRT_ISA", isa)
    artifact = artifact_of(tmp_path, token_spec(kind, task))
    ids = sequences(30, (1, 2, 3, 5, 8, 13, 16) * 4)
    ours = CpuEngine(artifact, threads=2).token_logits(ids, None)
    truth = reference_token_logits(artifact.spec, artifact.tensors, ids)
    assert [row.shape for row in ours] == [(len(row), artifact.spec.num_outputs) for row in ids]
    error = np.abs(np.concatenate(ours) - np.concatenate(truth)).max(axis=1)
    largest = max(np.abs(row).max() for row in truth)
    # sums of up to 51 terms, a dozen in a row, well conditioned by the layer norms; rare flips of one step of one input
    assert np.median(error) <= 12 * 51 * EPS * largest
    assert error.max() <= 0.05 * largest


@pytest.mark.parametrize("kind", ["f32", "s8"])
def test_a_text_does_not_depend_on_its_batch_or_on_threads(tmp_path: Path, kind: str) -> None:
    artifact = artifact_of(tmp_path, token_spec(kind))
    ids = sequences(30, (1, 2, 3, 5, 8, 13, 16) * 9)
    together = CpuEngine(artifact, threads=2).token_logits(ids, None)
    alone = CpuEngine(artifact, threads=1)
    for row, got in zip(ids, together, strict=True):
        np.testing.assert_array_equal(alone.token_logits([row], None)[0], got)
    small = CpuEngine(artifact, threads=2).token_logits(ids, None, budget=40)
    for a, b in zip(together, small, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_torch_model_equals_the_reference() -> None:
    spec = token_spec()
    tensors = random_tensors(spec)
    ids = sequences(30, (4, 1, 9, 16))
    got = predict_tokens(TorchEncoder(spec, tensors), ids, None)
    for ours, truth in zip(got, reference_token_logits(spec, tensors, ids), strict=True):
        np.testing.assert_allclose(ours, truth, rtol=0, atol=2e-5)


def test_what_is_of_texts_is_refused_by_name(tmp_path: Path) -> None:
    engine = CpuEngine(artifact_of(tmp_path, token_spec()))
    with pytest.raises(UnsupportedTaskError, match="logits of every token"):
        engine.forward([[1, 2]], None, "logits")
    assert engine.forward([[1, 2]], None, "pooled").shape == (1, 40)
    spec = small_spec("f32")
    plain = CpuEngine(read_artifact(write_artifact(tmp_path / "b", spec, random_tensors(spec), TOKENIZER_JSON, {})))
    with pytest.raises(UnsupportedTaskError, match="no logits of tokens"):
        plain.token_logits([[1, 2]], None)
