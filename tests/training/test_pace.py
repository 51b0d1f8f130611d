"""Training keeps to its budget."""

from __future__ import annotations

import pytest

from approxrt.training.budget import Budget, BudgetSpent
from approxrt.training.pace import Pace


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("approxrt.training.budget.time", found)
    return found


def lengths(clock: Clock, seconds: list[float], planned: int, budget: float) -> list[int]:
    """Steps that are planned after each step, when each takes so many `seconds`."""
    pace, steps, out = Pace(Budget(budget), 1.0), planned, []
    for step, taken in enumerate(seconds, 1):
        clock.now += taken
        steps = pace.fitting(step, steps, planned)
        out.append(steps)
        if step >= steps:
            break
    return out


def test_a_budget_counts_over_interrupts_and_keeps_a_reserve(clock: Clock) -> None:
    budget = Budget(100.0)
    clock.now += 30
    assert (budget.elapsed(), budget.left()) == (30, 70)
    budget.reserve = 20.0
    half = budget.share(0.5)
    clock.now += 40
    assert budget.left() == 10 and not half()
    clock.now += 11
    assert half()  # nothing is left before the reserve
    budget.check()
    clock.now += 20
    with pytest.raises(BudgetSpent):
        budget.check()
    again = Budget(100.0)
    again.resume(40.0)
    clock.now += 5
    assert again.elapsed() == 45


def test_a_slow_machine_shortens_training_to_the_budget(clock: Clock) -> None:
    """1000 steps of 1 s in 520 s, 20 of which are for building: 500 fit."""
    found = lengths(clock, [1.0] * 1000, 1000, 520)
    # The first second is of no step that is counted.
    assert found[0] == 1000 and all(abs(steps - 500) <= 500 / 25 for steps in found[30:]) and len(found) >= 495


def test_a_slow_start_does_not_cost_the_rest(clock: Clock) -> None:
    found = lengths(clock, [5.0] * 50 + [0.5] * 450, 1000, 1020)
    assert min(found) < 250 and found[-1] > 900
    assert max(found) <= 1000


def test_there_is_always_a_step_more(clock: Clock) -> None:
    found = lengths(clock, [30.0] * 60, 1000, 100)
    assert 26 < len(found) <= 51 and found[-1] == len(found)
