"""Removals that help: taken in the order of their gain, and only on evidence."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="students need torch")

from small_student import random_examples, small_student  # noqa: E402

from approxrt.analysis.gain import bootstrap_share, calibrated_loss, gains  # noqa: E402
from approxrt.analysis.removal import (  # noqa: E402
    Element,
    Held,
    shrunk,
    without,
)
from approxrt.approx.sign_attention import SignKind, with_sign_attention  # noqa: E402
from approxrt.approx.structure import Structure  # noqa: E402
from approxrt.approx.student import predict, sample_losses  # noqa: E402
from approxrt.compression import accuracy  # noqa: E402
from approxrt.compression.data import folds  # noqa: E402
from approxrt.tasks.metrics import compute_metrics  # noqa: E402
from approxrt.tasks.registry import get_task  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_bootstrap() -> None:
    rng = np.random.default_rng(0)
    assert bootstrap_share(np.full(50, -1.0), 200, rng) == 1.0
    assert bootstrap_share(np.full(50, 1.0), 200, rng) == 0.0
    noise = np.random.default_rng(1).standard_normal(400)
    assert 0.05 < bootstrap_share(noise - noise.mean(), 500, rng) < 0.95


def labelled_by(student, count: int = 120):
    """Random texts whose labels are what `student` answers."""
    examples = random_examples(count)
    logits = predict(student, examples.ids, examples.types)
    # The median splits them, so that both classes are there.
    margin = logits[:, 1] - logits[:, 0]
    return dataclasses.replace(examples, labels=(margin > np.median(margin)).astype(np.int64))


def test_what_harms_goes_and_what_helps_stays() -> None:
    """Labels come from a model without one block: with it, the loss is larger, and nothing else can be spared."""
    student = small_student()
    harmful = Element(1, "ffn")
    right = shrunk(student, without(student.spec, Structure.of(student.spec), harmful), None)
    held = Held(student, labelled_by(right))
    keep, trials = gains(held, get_task("sst2"), None, folds(len(held), 3, 0), seed=0)
    accepted = [trial.element.name for trial in trials if trial.accepted]
    changes = [trial.change for trial in trials]
    assert trials and all(change < 0 for t, change in zip(trials, changes, strict=True) if t.accepted)
    assert all(t.worst_fold < 0 and t.confidence >= 0.95 for t in trials if t.accepted)
    assert any(name.startswith("layers.1.ffn") for name in accepted)
    assert len(keep.units[1]) < student.spec.layers[1].intermediate_size


def test_noise_is_no_reason() -> None:
    """Labels by chance: some removals lower the loss a little, and hardly one can prove it in every fold."""
    student = small_student()
    examples = random_examples(60)
    labels = np.random.default_rng(3).integers(0, 2, 60)
    held = Held(student, dataclasses.replace(examples, labels=labels))
    strict = gains(held, get_task("sst2"), None, folds(60, 4, 0), confidence=1.01, seed=0)
    assert not any(trial.accepted for trial in strict[1])
    assert all(len(a) == len(b) for a, b in zip(strict[0].heads, Structure.of(student.spec).heads, strict=True))


def test_being_less_sure_is_no_gain() -> None:
    """Losses are those of the best temperature, so that a scale changes nothing; scores are taken as they are."""
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((400, 3)).astype(np.float32), rng.integers(0, 3, 400)
    logits[np.arange(400), labels] += 1
    least = calibrated_loss(logits, labels)
    assert calibrated_loss(logits * 4, labels) == pytest.approx(least)
    assert least <= sample_losses(logits, labels).mean()
    scores, targets = rng.standard_normal((9, 1)).astype(np.float32), rng.standard_normal(9).astype(np.float32)
    assert calibrated_loss(scores, targets) == pytest.approx(np.square(scores[:, 0] - targets).mean())


def test_hard_attention_is_taken_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels are the answers of the model whose first layer attends hard: there it is taken."""
    monkeypatch.setattr(accuracy, "HARD_KEEP", 3)
    student, separators = small_student(), (1,)
    with_sign_attention(student, {0: SignKind(3, 4, rest=False)}, separators)
    held = labelled_by(student, 240)
    with_sign_attention(student, {}, ())
    compression = SimpleNamespace(
        validation=held,
        options=SimpleNamespace(seed=0),
        separators=lambda: separators,
        progress=lambda share, text: None,
    )
    taken = accuracy._hard_attention(compression, student)  # type: ignore[arg-type]
    assert 0 in taken
    keeps = [i for i, layer in enumerate(student.spec.layers) if layer.attention_keep == 3]
    assert keeps == taken and student.spec.always_kept == separators
    monkeypatch.setattr(accuracy, "HARD_KEEP", 12)
    assert accuracy._hard_attention(compression, student) == []  # type: ignore[arg-type]


def test_a_border_that_lies_wrong_moves_in_the_last_bias() -> None:
    """Labels are the answers of a model; its twin with a shifted bias takes the shift back."""
    student = small_student()
    held = labelled_by(student, 240)
    logits = predict(student, held.ids, held.types)
    with torch.no_grad():  # the labels split at the median; far from it nearly all answers are of one class
        spread = float(np.std(logits[:, 1] - logits[:, 0]))
        student.weight("head.out.bias")[1] += 2 * spread - float(np.median(logits[:, 1] - logits[:, 0]))
    data = SimpleNamespace(task=get_task("cola"))
    compression = SimpleNamespace(
        validation=held, data=data, options=SimpleNamespace(seed=0), progress=lambda share, text: None
    )
    before = compute_metrics("cola", predict(student, held.ids, held.types), held.labels)["matthews"]
    offsets = accuracy._offsets(compression, student)  # type: ignore[arg-type]
    assert offsets is not None and offsets[1] - offsets[0] == pytest.approx(-2 * spread, rel=0.2)
    after = compute_metrics("cola", predict(student, held.ids, held.types), held.labels)["matthews"]
    assert before < 0.4 and after > 0.9
    assert accuracy._offsets(compression, student) is None  # type: ignore[arg-type]
