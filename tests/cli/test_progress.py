"""A long command reports its progress in lines where stderr is no terminal."""

from __future__ import annotations

from approxrt.cli.output import ProgressLines
from approxrt.progress import Progress


def test_a_line_now_and_then_with_the_time_left() -> None:
    now, lines = [0.0], list[str]()
    found = ProgressLines(200, lines.append, lambda: now[0])
    for second in range(1, 31):
        now[0] = float(second)
        found.advance(2, f"step {second}")
    assert lines == ["10%, 1:30 left: step 10", "20%, 1:20 left: step 20", "30%, 1:10 left: step 30"]
    now[0] = 4000.0
    found.advance(0, None)
    assert lines[-1] == "30%, 2:35:33 left: step 30"


def test_what_is_over_soon_says_nothing() -> None:
    lines = list[str]()
    found = ProgressLines(10, lines.append, lambda: 5.0)
    for _ in range(10):
        found.advance(1, "quick")
    assert not lines


def test_parts_of_a_bar_count_from_nothing_to_one() -> None:
    seen: list[tuple[float, str]] = []
    whole = Progress.of(lambda share, text: seen.append((round(share, 3), text)))
    half = whole.part(0.5, 1.0)
    half(0.0, "begin")
    half.count(1, 4, "quarter")
    half.part(0.5, 1.0)(1.0, "end")
    assert seen == [(0.5, "begin"), (0.625, "quarter"), (1.0, "end")]
    Progress.of(None)(0.3, "nobody is told")
