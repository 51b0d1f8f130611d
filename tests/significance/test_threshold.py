"""Offsets of logits: what they bring for metrics that do not want the likeliest class, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest

metrics = pytest.importorskip("sklearn.metrics", reason="metrics need scikit-learn")
pytest.importorskip("torch", reason="removals are measured with torch")

from approxrt.errors import InputError  # noqa: E402
from approxrt.significance.bootstrap import Bootstrap, metric_gain  # noqa: E402
from approxrt.significance.threshold import gain_of_offsets, logit_offsets, vector_scaling  # noqa: E402
from approxrt.tasks.confusion import confusion, metric_of  # noqa: E402
from approxrt.tasks.metrics import compute_metrics, primary  # noqa: E402
from approxrt.training.data import folds  # noqa: E402


def drawn(n: int, seed: int, shift: float = 0.0, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits f64[n, 2], which are right about the chance of class 1 but for `shift`, and labels drawn by it."""
    rng = np.random.default_rng(seed)
    margin = spread * rng.standard_normal(n) + 1.0
    labels = (rng.random(n) < 1 / (1 + np.exp(-margin))).astype(np.int64)
    return np.stack([-0.5 * (margin + shift), 0.5 * (margin + shift)], axis=1), labels


def test_the_border_of_the_matthews_correlation() -> None:
    """Three of four texts are of class 1, and little is known: it wants far more answers of class 0 than are likely."""
    logits, labels = drawn(800, 1)
    fresh, truth = drawn(40_000, 2)
    offsets = logit_offsets("matthews", logits, labels)
    assert offsets.sum() == pytest.approx(0)
    assert offsets[1] < 0
    before, after, best = (
        primary(compute_metrics("cola", fresh + np.array([-move, move]), truth))
        for move in (0.0, offsets[1], _best_move("cola", fresh, truth))
    )
    assert after > before + 0.02
    # Standard error of a border from 800 texts: the loss near the best is of second order.
    assert after > best - 0.01


def _best_move(task: str, logits: np.ndarray, labels: np.ndarray) -> float:
    moves = np.linspace(-2, 2, 81)
    found = [primary(compute_metrics(task, logits + np.array([-m, m]), labels)) for m in moves]
    return float(moves[np.argmax(found)])


def test_a_shift_is_taken_back() -> None:
    logits, labels = drawn(2000, 3, shift=2.0)
    fresh, truth = drawn(40_000, 4, shift=2.0)
    right, _ = drawn(40_000, 4)
    moved = primary(compute_metrics("sst2", fresh + logit_offsets("accuracy", logits, labels), truth))
    assert moved > primary(compute_metrics("sst2", fresh, truth)) + 0.02
    assert moved > primary(compute_metrics("sst2", right, truth)) - 0.005


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_scales_of_logits_change_nothing(scale: float) -> None:
    logits, labels = drawn(500, 5)
    plain, scaled = logit_offsets("matthews", logits, labels), logit_offsets("matthews", scale * logits, labels)
    np.testing.assert_allclose(scaled, scale * plain, rtol=1e-3)
    assert vector_scaling(scale * logits, labels)[0] == pytest.approx(scale * vector_scaling(logits, labels)[0], 1e-3)


def test_three_classes() -> None:
    rng = np.random.default_rng(6)
    labels = rng.choice(3, 1500, p=[0.2, 0.3, 0.5])
    logits = np.eye(3)[labels] + rng.standard_normal((1500, 3)) + np.array([0.0, 0.0, 3.0])
    offsets = logit_offsets("accuracy", logits, labels)
    assert offsets.sum() == pytest.approx(0)
    before, after = (primary(compute_metrics("csv", x, labels)) for x in (logits, logits + offsets))
    assert after > before + 0.05


def test_logits_that_know_nothing() -> None:
    labels = np.array([0, 1] * 30)
    for logits in (np.zeros((60, 2)), np.random.default_rng(7).standard_normal((60, 2))):
        assert np.isfinite(logit_offsets("matthews", logits, labels)).all()


def test_cross_fitted_gain() -> None:
    """It shows where there is something to gain, and where the border is right already it does not."""
    rng = np.random.default_rng(8)
    gain, share = gain_of_offsets("matthews", *drawn(900, 9), folds(900, 4, 0), Bootstrap(200, rng))
    assert gain > 0 and share > 0.8
    found = [
        gain_of_offsets("accuracy", *drawn(400, seed), folds(400, 4, 0), Bootstrap(200, rng)) for seed in range(10, 50)
    ]
    # Of noise: it loses about as often as it wins, and hardly ever seems likely to win.
    assert np.mean([gain for gain, _ in found]) < 0.002
    assert np.mean([share >= 0.75 for _, share in found]) <= 0.3


def test_gain_of_a_metric() -> None:
    logits, labels = drawn(300, 19)
    right = np.eye(2)[labels]
    gain, share = metric_gain("matthews", logits, right, labels, Bootstrap(100, np.random.default_rng(0)))
    assert gain == pytest.approx(1 - primary(compute_metrics("cola", logits, labels))) and share == 1.0
    assert metric_gain("matthews", right, right, labels, Bootstrap(100, np.random.default_rng(0))) == (0.0, 0.0)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_metrics_of_confusion_matrices(count: int) -> None:
    rng = np.random.default_rng(20)
    labels = rng.integers(0, count, 60)
    answers = np.where(rng.random((4, 60)) < 0.6, labels, rng.integers(0, count, (4, 60)))
    answers[3] = 0  # a constant answer has no correlation
    matrices = confusion(answers, labels, count)
    for matrix, answer in zip(matrices, answers, strict=True):
        np.testing.assert_array_equal(matrix, metrics.confusion_matrix(labels, answer, labels=range(count)))
    for name, expected in (
        ("accuracy", [metrics.accuracy_score(labels, answer) for answer in answers]),
        ("f1", [metrics.f1_score(labels, answer, labels=[1], average="macro") for answer in answers]),
        ("matthews", [metrics.matthews_corrcoef(labels, answer) for answer in answers]),
    ):
        np.testing.assert_allclose(metric_of(name, matrices), expected, atol=1e-12)


def test_unknown_metric() -> None:
    with pytest.raises(InputError, match="spearman is no metric of a confusion matrix"):
        metric_of("spearman", np.eye(2))
