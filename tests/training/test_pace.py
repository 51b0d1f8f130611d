"""How training keeps to its budget."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from approxrt.compression.recipes.gradual import _Pace


def lengths(seconds: list[float], planned: int, budget: float) -> list[int]:
    """Steps that are planned after each step, when each takes so many `seconds`."""
    clock = SimpleNamespace(now=0.0)
    run = SimpleNamespace(elapsed=lambda: clock.now, options=SimpleNamespace(budget=budget))
    pace, steps, out = _Pace(run, 0, 1), planned, []
    for step, taken in enumerate(seconds, 1):
        clock.now += taken
        steps = pace.fitting(step, steps, planned)
        out.append(steps)
        if step >= steps:
            break
    return out


def test_a_slow_machine_shortens_training_to_the_budget() -> None:
    """1000 steps of 1 s in 520 s, 20 of which are for building: 500 fit."""
    found = lengths([1.0] * 1000, 1000, 520)
    # The first second is of no step that is counted.
    assert found[0] == 1000 and all(abs(steps - 500) <= 500 / 25 for steps in found[30:]) and len(found) >= 495


def test_a_slow_start_does_not_cost_the_rest() -> None:
    found = lengths([5.0] * 50 + [0.5] * 450, 1000, 1020)
    assert min(found) < 250 and found[-1] > 900
    assert max(found) <= 1000


def test_there_is_always_a_step_more() -> None:
    found = lengths([30.0] * 60, 1000, 100)
    assert 26 < len(found) <= 51 and found[-1] == len(found)
