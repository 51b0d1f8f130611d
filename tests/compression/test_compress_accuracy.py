"""compress --objective accuracy from end to end on tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint

torch = pytest.importorskip("torch", reason="compression trains in torch")
pytest.importorskip("transformers", reason="compression reads data through transformers' tokenizers")

from test_compress import checkpoint, data, options, small  # noqa: E402, F401

import approxrt  # noqa: E402
from approxrt.compression.recipes.ensemble import PACE_STEPS  # noqa: E402
from approxrt.training.distillation import Distillation  # noqa: E402
from approxrt.training.replaced_token import ReplacedTokenDetection  # noqa: E402

pytestmark = pytest.mark.slow


def test_members_removals_and_an_ensemble(
    checkpoint: Path,  # noqa: F811
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    wanted = options(objective=("accuracy",), epochs=1.0)
    report = approxrt.compress(checkpoint, data, out=tmp_path / "a", task="csv", options=wanted)
    about = report.chosen["about"]
    assert about["practice"]["steps"] and about["practice"]["member_steps"]
    assert about["teaching"] and set(about["teaching"]) <= set(range(5))
    assert about["members"] == 5 and about["tried"] >= len(about["removed"])
    assert about["mixed"] and set(about["mixed"]) <= set(range(5))
    assert report.chosen["metrics"]["accuracy"] >= report.dense["metrics"]["accuracy"] - 0.05
    assert (tmp_path / "a.work" / "member-0.pt").exists()
    assert 0 <= about["gain_in_resamples"] <= 1
    # A few dozen examples: whatever the model gains on them, chance may have done it.
    assert (about["gain_in_resamples"] < 0.95) == any("may be chance" in note for note in report.notes)


def test_interrupts_go_on(
    checkpoint: Path,  # noqa: F811
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Finished steps are not done again, and the artifact is the one that it would have been."""

    def compress(name: str) -> Any:
        wanted = options(objective=("accuracy",), epochs=1.0)
        return approxrt.compress(checkpoint, data, out=tmp_path / name, task="csv", options=wanted)

    once = compress("once")
    taken = {ReplacedTokenDetection: 0, Distillation: 0}
    last = {ReplacedTokenDetection: 5, Distillation: 0}

    def counted(kind: Any) -> None:
        original = kind.advance

        def advance(self: Any) -> float:
            taken[kind] += 1
            if taken[kind] == last[kind]:
                raise KeyboardInterrupt
            return original(self)

        monkeypatch.setattr(kind, "advance", advance)

    counted(ReplacedTokenDetection)
    counted(Distillation)
    with pytest.raises(KeyboardInterrupt):
        compress("again")
    assert not list((tmp_path / "again.work").glob("*.pt"))
    steps = once.chosen["about"]["practice"]["member_steps"]
    last[Distillation] = PACE_STEPS + 1 + steps + 3  # the third step of the second member
    with pytest.raises(KeyboardInterrupt):
        compress("again")
    assert {path.name for path in (tmp_path / "again.work").glob("*.pt")} == {"practised.pt", "member-0.pt"}
    taken[ReplacedTokenDetection] = taken[Distillation] = last[ReplacedTokenDetection] = last[Distillation] = 0
    again = compress("again")
    assert (
        not taken[ReplacedTokenDetection] and 3 * steps <= taken[Distillation] < 4 * steps
    )  # three members and the model
    assert again.chosen["about"]["mixed"] == once.chosen["about"]["mixed"]
    one, other = (approxrt.load(tmp_path / name).logits(["a good film", "a bad film"]) for name in ("once", "again"))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_scores_of_pairs(family: str, tmp_path: Path) -> None:
    """The texts alone tell which seconds belong to which firsts; there is no border between classes to move."""
    rng = np.random.default_rng(0)
    words = "good great fine film the a story rain town price work hours room bad awful".split()  # noqa: SIM905
    lines = ["text,text_pair,label"]
    for _ in range(120):
        first, second = (" ".join(rng.choice(words, rng.integers(2, 6))) for _ in range(2))
        lines.append(f"{first},{second},{rng.random() * 5:.2f}")
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    folder = build_checkpoint(family, tmp_path / "c", hidden=32, heads=2, ffn=64, positions=64, num_labels=1)
    wanted = options(objective=("accuracy",), max_drop=0.99, epochs=1.0)
    report = approxrt.compress(folder, tmp_path / "train.csv", out=tmp_path / "a", task="csv", options=wanted)
    about = report.chosen["about"]
    assert about["practice"]["steps"] > 0 and about["offsets"] is None
    assert set(report.chosen["metrics"]) == {"spearman", "pearson"}
    assert approxrt.load(tmp_path / "a").logits([("a film", "the film")]).shape == (1, 1)
