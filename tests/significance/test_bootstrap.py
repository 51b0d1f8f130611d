"""Removals that help: taken in the order of their gain, and only on evidence."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need torch")

from small_encoder import labelled_by, random_examples, small_encoder  # noqa: E402

from approxrt.pruning.structure import Structure  # noqa: E402
from approxrt.significance.bootstrap import Bootstrap, GainTest, calibrated_loss, gains  # noqa: E402
from approxrt.significance.elements import Element, without  # noqa: E402
from approxrt.significance.encoder_removal import HeldOutLoss, shrunk  # noqa: E402
from approxrt.torch_models.encoder import sample_losses  # noqa: E402
from approxrt.training.data import folds  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_bootstrap() -> None:
    rng = np.random.default_rng(0)
    assert Bootstrap(200, rng).share(np.full(50, -1.0)) == 1.0
    assert Bootstrap(200, rng).share(np.full(50, 1.0)) == 0.0
    noise = np.random.default_rng(1).standard_normal(400)
    assert 0.05 < Bootstrap(500, rng).share(noise - noise.mean()) < 0.95


def test_what_harms_goes_and_what_helps_stays() -> None:
    """Labels come from a model without one block: with it, the loss is larger, and nothing else can be spared."""
    model = small_encoder()
    harmful = Element(1, "ffn")
    right = shrunk(model, without(model.spec, Structure.of(model.spec), harmful), None)
    held = HeldOutLoss(model, labelled_by(right, 120))
    keep, trials = gains(held, None, GainTest(folds(len(held), 3, 0), seed=0))
    accepted = [trial.element.name for trial in trials if trial.accepted]
    changes = [trial.change for trial in trials]
    assert trials and all(change < 0 for t, change in zip(trials, changes, strict=True) if t.accepted)
    assert all(t.worst_fold < 0 and t.confidence >= 0.95 for t in trials if t.accepted)
    assert any(name.startswith("layers.1.ffn") for name in accepted)
    assert len(keep.channels[1]) < model.spec.layers[1].intermediate_size


def test_noise_is_no_reason() -> None:
    """Labels by chance: some removals lower the loss a little, and hardly one can prove it in every fold."""
    model = small_encoder()
    examples = random_examples(60)
    labels = np.random.default_rng(3).integers(0, 2, 60)
    held = HeldOutLoss(model, dataclasses.replace(examples, labels=labels))
    strict = gains(held, None, GainTest(folds(60, 4, 0), confidence=1.01, seed=0))
    assert not any(trial.accepted for trial in strict[1])
    assert all(len(a) == len(b) for a, b in zip(strict[0].heads, Structure.of(model.spec).heads, strict=True))


def test_the_more_are_looked_at_the_surer_each_must_be() -> None:
    """Labels by chance, many elements: at a fixed 95 % each, some would pass; of all of these runs none does."""
    at_fixed, accepted = 0, 0
    for seed in range(6):
        model = small_encoder(seed)
        examples = random_examples(60, seed)
        labels = np.random.default_rng(seed).integers(0, 2, 60)
        held = HeldOutLoss(model, dataclasses.replace(examples, labels=labels))
        _, trials = gains(held, None, GainTest(folds(60, 2, seed), seed=seed))
        at_fixed += sum(t.worst_fold < 0 and t.confidence >= 0.95 for t in trials)
        accepted += sum(t.accepted for t in trials)
    assert at_fixed > 0 == accepted


def test_after_refusals_in_a_row_no_more_are_tried() -> None:
    model = small_encoder()
    labels = np.random.default_rng(3).integers(0, 2, 60)
    held = HeldOutLoss(model, dataclasses.replace(random_examples(60), labels=labels))
    _, trials = gains(held, None, GainTest(folds(60, 4, 0), confidence=1.01, patience=2))
    assert len(trials) == 2


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
