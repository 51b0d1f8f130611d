"""Pairs that a model learns from beside the labelled ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from small_encoder import random_examples, small_encoder  # noqa: E402

from approxrt.tasks.readers import Dataset  # noqa: E402
from approxrt.training import augmentation as lessons  # noqa: E402
from approxrt.training.distillation import Distillation, DistillationOptions  # noqa: E402
from approxrt.training.teacher import teach  # noqa: E402

SUBJECTS = ("a cat", "the dog", "my bird", "one horse", "our fish", "that mouse")
DEEDS = ("sleeps", "runs home", "sings a song", "eats grass")


def pairs() -> Dataset:
    texts = [(f"{s} {d}", f"{s} often {d}") for s in SUBJECTS for d in DEEDS]
    return Dataset(texts, np.arange(len(texts)) % 2, ("no", "yes"))


def test_new_pairs_are_of_known_texts_and_follow_the_labelled_ones() -> None:
    data = pairs()
    more = lessons.with_more_pairs(data, seed=3)
    assert more.texts[: len(data)] == data.texts and np.array_equal(more.labels[: len(data)], data.labels)
    new = more.texts[len(data) :]
    assert len(more.labels) == len(more.texts) and len(data) // 2 < len(new) <= len(data)
    assert len(set(new)) == len(new) and not set(new) & set(data.texts)
    first, second = zip(*data.texts, strict=True)
    exchanged = [pair for pair in new if pair[0] in second]
    assert all(pair[::-1] in data.texts for pair in exchanged) and len(exchanged) == len(data) // 2
    others = [pair for pair in new if pair[0] in first]
    assert len(others) + len(exchanged) == len(new) and all(pair[1] in second for pair in others)
    # Alike, not at random: the subject or the deed is the first text's.
    assert all(any(part in a and part in b for part in (*SUBJECTS, *DEEDS)) for a, b in others)


def test_new_pairs_are_the_seeds() -> None:
    data = pairs()
    assert lessons.with_more_pairs(data, 1).texts == lessons.with_more_pairs(data, 1).texts
    assert lessons.with_more_pairs(data, 1).texts != lessons.with_more_pairs(data, 2).texts


def test_where_there_is_nothing_to_add(monkeypatch: pytest.MonkeyPatch) -> None:
    single = Dataset(["one", "two"], np.arange(2), ("no", "yes"))
    assert lessons.with_more_pairs(single, 0) is single
    same = Dataset([("a text", "a text")] * 5, np.zeros(5, np.float32), None)
    assert lessons.with_more_pairs(same, 0).texts == same.texts
    symbols = Dataset([("!", "?"), ("。", "…")], np.zeros(2, np.float32), None)
    assert set(lessons.with_more_pairs(symbols, 0).texts) > set(symbols.texts)
    monkeypatch.setattr(lessons, "ENOUGH", 24)
    data = pairs()
    assert lessons.with_more_pairs(data, 0) is data
    monkeypatch.setattr(lessons, "ENOUGH", 30)
    assert len(data) < len(lessons.with_more_pairs(data, 0)) <= 30


def test_labels_of_unlabelled_examples_teach_nothing() -> None:
    whole = small_encoder()
    data = random_examples(32)
    options = DistillationOptions(batch_size=32, teacher_share=0.5)
    teacher = teach([whole], data)

    def loss(labels: np.ndarray, labelled: int | None) -> float:
        lesson = replace(data, labels=labels, labelled=labelled)
        return Distillation(small_encoder(), lesson, teacher, 10, options).advance()

    assert data.labels is not None
    flipped = data.labels.copy()
    flipped[20:] = 1 - flipped[20:]
    assert loss(data.labels, 20) == loss(flipped, 20)
    assert loss(data.labels, None) != loss(flipped, None)
    # A model that is its teacher has no loss but that of the labels.
    assert loss(data.labels, 0) == pytest.approx(0, abs=1e-6)
