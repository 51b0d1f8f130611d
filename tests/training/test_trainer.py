"""All trainings share schedules, steps, the order of examples, and the errors that they make small."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="trainings run in torch")

from approxrt.errors import TrainingError  # noqa: E402
from approxrt.training.objectives import (  # noqa: E402
    LikelyTokens,
    label_errors,
    likely_token_divergence,
    state_error,
    teacher_errors,
    vector_error,
)
from approxrt.training.optimizer import decay_groups  # noqa: E402
from approxrt.training.trainer import Epochs, Schedule, StepOptions, Trainer, shuffled_rows  # noqa: E402


class Line(Trainer):
    """Fits a constant to a target; the loss is what it is told to be, if it is told."""

    def __init__(self, **options: float) -> None:
        super().__init__(torch.device("cpu"), StepOptions(0.1, Schedule(0.2), **options))
        self.weight = torch.nn.Parameter(torch.zeros(2, 2))
        self.told: float | None = None
        self.start_optimizer(decay_groups([self.weight], 0.0))

    def trained(self) -> Sequence[torch.Tensor]:
        return [self.weight]

    def rate_share(self) -> float:
        return self.step_options.schedule.at_step(self.step, 10)

    def next_loss(self) -> torch.Tensor:
        return (self.weight - 1).square().sum() * (1.0 if self.told is None else self.told)


def test_rates_rise_in_a_line_and_fall_to_the_end() -> None:
    shares = [Schedule(0.25, 0.1).at_step(step, 8) for step in range(9)]
    assert shares[:3] == [0.5, 1.0, 1.0] and shares[-1] == pytest.approx(0.1)
    assert np.allclose(np.diff(shares[2:]), -0.9 / 6)
    by_time = [Schedule(0.25, 0.1).at_share(done) for done in (0.0, 0.125, 0.25, 0.625, 1.0)]
    assert by_time == pytest.approx([0.05, 0.5, 1.0, 0.55, 0.1])
    assert Schedule(0.0).at_step(0, 1) == 1.0


def test_steps_train_and_count() -> None:
    line = Line()
    losses = [line.take_step() for _ in range(10)]
    assert losses[0] == 4.0 and losses[-1] < 0.5 * losses[0] and line.step == 10 and line.loss == losses[-1]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_changes_nothing(value: float) -> None:
    line = Line()
    line.told = value
    with pytest.raises(TrainingError, match=r"at step 1 with lr 0.1.*smaller --lr"):
        line.take_step()
    assert line.step == 0 and not line.weight.any()


def test_every_example_comes_once_an_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 50)
    epochs = Epochs(lengths, 8, seed=3)
    rows = [np.concatenate([epochs.rows(7 * epoch + i) for i in range(7)]) for epoch in range(2)]
    assert epochs.steps == 7 and all(sorted(part) == list(range(50)) for part in rows)
    assert not np.array_equal(*rows)
    assert np.array_equal(Epochs(lengths, 8, seed=3).rows(9), epochs.rows(9))  # the number alone decides
    some = [shuffled_rows(9, 2, 0, step) for step in range(4)]
    assert len({int(row) for part in some for row in part}) == 8
    assert np.array_equal(shuffled_rows(9, 2, 0, 2), some[2])


def test_errors_to_labels_and_teachers() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, taught = (torch.randn(5, 3, generator=generator) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 0, 1])
    expected = -logits.log_softmax(1)[torch.arange(5), labels]
    assert torch.allclose(label_errors(logits, labels), expected)
    assert torch.allclose(label_errors(logits[:, :1], labels.float()), (logits[:, 0] - labels).square())
    p, q = (x.div(2.0).softmax(1) for x in (taught, logits))
    assert torch.allclose(teacher_errors(logits, taught, 2.0, True), 4 * (p * (p / q).log()).sum(1), atol=1e-5)
    assert not teacher_errors(taught, taught, 2.0, True).abs().max() > 1e-6
    assert torch.allclose(teacher_errors(logits[:, :1], taught[:, :1], 2.0, False), (logits - taught)[:, 0].square())
    assert vector_error(3 * taught, taught) == pytest.approx(0.0, abs=1e-6)
    mask = torch.tensor([[[1.0], [0.0]]])
    states = torch.tensor([[[1.0, 3.0], [9.0, 9.0]]])
    assert state_error(states, torch.zeros(1, 2, 2), mask) == pytest.approx(5.0)


def test_divergence_of_next_tokens_counts_the_rest_as_one() -> None:
    generator = torch.Generator().manual_seed(1)
    logits, taught = (torch.randn(2, 4, 12, generator=generator) for _ in range(2))
    known = [LikelyTokens.of(rows, 5) for rows in taught]
    p, q = taught.softmax(2), logits.softmax(2)
    top = torch.stack([found.ids.long() for found in known])
    inside = (p.gather(2, top) * (p.gather(2, top) / q.gather(2, top)).log()).sum(2)
    left = [1 - x.gather(2, top).sum(2) for x in (p, q)]
    expected = (inside + left[0] * (left[0] / left[1]).log()).mean()
    assert likely_token_divergence(logits, known) == pytest.approx(float(expected), rel=1e-4)
    whole = [LikelyTokens.of(rows, 100) for rows in taught]
    exact = (p * (p / q).log()).sum(2).mean()
    assert likely_token_divergence(logits, whole) == pytest.approx(float(exact), rel=1e-3)
