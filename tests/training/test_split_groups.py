"""Groups of texts that are parts of one another, and splits that keep them together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from approxrt.errors import InputError
from approxrt.tasks.groups import containment_groups, held_out, held_out_groups
from approxrt.tasks.readers import Dataset
from approxrt.tasks.registry import get_task
from approxrt.training.data import DataOptions, _finetuned_split, _split
from approxrt.training.finetune import FinetuneOptions, split_data, total_steps

PHRASES = [
    f"{a} {b} {c}{end}"
    for a in ("a slow", "one more", "this very", "no such")
    for b in ("film about", "story of", "tale for")
    for c in ("an old house in the woods", "two friends", "the sea and its ships")
    for end in ("", " that never ends", " that never ends and is worth the wait")
]


def data_of(texts: list[str]) -> Dataset:
    return Dataset(texts, np.arange(len(texts)) % 2, ("no", "yes"))  # type: ignore[arg-type]


def within(part: str, whole: str) -> bool:
    a, b = part.lower().split(), whole.lower().split()
    return any(b[i : i + len(a)] == a for i in range(len(b) - len(a) + 1))


def test_phrases_go_with_their_sentence() -> None:
    texts = ["A fine film , too long by half", "fine film", "too long by half", "another film", "long BY half", ""]
    assert containment_groups(texts).tolist() == [0, 0, 0, 3, 0, 5]


def test_a_part_of_two_goes_with_the_longer_one() -> None:
    assert containment_groups(["b c", "a b c", "x y b c"]).tolist() == [2, 1, 2]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=9).map(" ".join), min_size=1, max_size=30))
def test_groups_are_those_of_comparing_every_pair(texts: list[str]) -> None:
    groups = containment_groups(texts)
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i].split()))
    expected = [-1] * len(texts)
    for i in order:
        expected[i] = i if expected[i] < 0 else expected[i]
        for j in range(len(texts)):
            if expected[j] < 0 and texts[j] and within(texts[j], texts[i]):
                expected[j] = expected[i]
    assert groups.tolist() == expected


@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=20), share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32)
)
def test_whole_groups_are_held_out(sizes: list[int], share: float, seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    count = max(1, round(share * len(groups)))
    held = held_out(groups, count, seed)
    assert len(held) <= count and len(held) < len(groups) and (np.diff(held) > 0).all()
    rest = set(np.delete(groups, held))
    assert not set(groups[held]) & rest
    # No other group fits, but for the one that has to be left.
    assert len(rest) == 1 or all(sizes[group] > count - len(held) for group in rest)
    np.testing.assert_array_equal(held, held_out(groups, count, seed))


def test_nothing_to_group_is_said_so() -> None:
    assert held_out_groups(data_of(["one", "two", "three"]), 1, [0]) is None
    pairs = Dataset([("a b", "a"), ("a", "b")], np.zeros(2), None)
    assert held_out_groups(pairs, 1, [0]) is None
    # One text has all of the others but one inside.
    assert held_out_groups(data_of([" ".join(map(str, range(30))), *map(str, range(30)), "x"]), 8, [0]) is None


def test_every_class_is_on_both_sides_or_groups_are_not_kept() -> None:
    texts = [text for i in range(10) for text in (f"text {i} of ten", f"text {i}")]
    rare = np.zeros(20, np.int64)
    rare[4:8] = 1  # two groups
    data = Dataset(texts, rare, ("no", "yes"))  # type: ignore[arg-type]
    for seed in range(10):
        held = held_out_groups(data, 4, [seed])
        assert held is not None and set(rare[held]) == {0, 1} == set(np.delete(rare, held))
    only = Dataset(texts, (np.arange(20) // 2 == 3).astype(np.int64), ("no", "yes"))  # type: ignore[arg-type]
    assert held_out_groups(only, 4, [0]) is None
    train, validation = _split(only, DataOptions(0, 0.2))
    assert 1 in train.labels and 1 in validation.labels


def test_splits_keep_sentences_on_one_side() -> None:
    data = data_of([*PHRASES, *(f"line {i}" for i in range(40))])
    for train, validation in (
        split_data(data, FinetuneOptions(val_fraction=0.2, seed=3)),
        _split(data, DataOptions(3, 0.2)),
    ):
        assert sorted([*train.texts, *validation.texts]) == sorted(data.texts)
        assert abs(len(validation) - 0.2 * len(data)) <= 3
        # Every phrase here is the beginning of one sentence only.
        assert not [t for t in train.texts for v in validation.texts if within(str(t), str(v))]
    options = FinetuneOptions(val_fraction=0.2, seed=3, batch_size=10, epochs=2)
    assert total_steps(data, options) == 2 * -(-len(split_data(data, options)[0]) // 10)
    train, validation = split_data(data, FinetuneOptions(val_fraction=0.2, seed=3, split="random"))
    assert [t for t in train.texts for v in validation.texts if within(str(t), str(v))]
    with pytest.raises(InputError, match="split is 'sorted'; it must be one of grouped, random"):
        FinetuneOptions(split="sorted").check()


def test_a_checkpoint_from_before_grouping_keeps_its_split(tmp_path: Path) -> None:
    """Its validation part must not become training data."""
    report: dict[str, Any] = {"task": "sst2", "options": {"seed": 1, "val_fraction": 0.1}}
    (tmp_path / "finetune.json").write_text(json.dumps(report))
    found = _finetuned_split(tmp_path, get_task("sst2"))
    assert found is not None and found["split"] == "random"
    report["options"] = {"seed": 1, "val_fraction": 0.1, "split": "grouped"}
    (tmp_path / "finetune.json").write_text(json.dumps(report))
    found = _finetuned_split(tmp_path, get_task("sst2"))
    assert found is not None and found["split"] == "grouped"
