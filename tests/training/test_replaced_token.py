"""Replaced-token detection: what is changed in texts is marked, and a model that practises learns to find it."""

from __future__ import annotations

import random

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="models need torch")

from counting_texts import END, START, WORDS, ascending, counting_tokenizer  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from small_encoder import small_encoder  # noqa: E402

from approxrt.errors import TrainingError  # noqa: E402
from approxrt.torch_models.encoder import TorchEncoder, make_batch  # noqa: E402
from approxrt.training.distillation import DistillationOptions  # noqa: E402
from approxrt.training.replaced_token import DetectionTexts, MarkedText, ReplacedTokenDetection, change  # noqa: E402


def practise(texts: list, steps: int, **changes) -> ReplacedTokenDetection:
    torch.manual_seed(0)
    options = DistillationOptions(**{"lr": 2e-3, "batch_size": 16, "seed": 3, **changes})
    return ReplacedTokenDetection(small_encoder(), DetectionTexts(texts, counting_tokenizer(), 16), steps, options)


@st.composite
def marked_texts(draw: st.DrawFn) -> MarkedText:
    first, second = draw(st.lists(st.sampled_from(WORDS), max_size=8)), draw(st.lists(st.sampled_from(WORDS)))
    ids = [START, *first, END, *second[:8], END]
    types = [0] * (len(first) + 2) + [1] * (len(second[:8]) + 1)
    return MarkedText(ids, types, [i in (START, END) for i in ids], [False] * len(ids))


@given(marked_texts(), st.integers(0, 2**32), st.integers(0, 4))
def test_changes_are_marked(marked: MarkedText, seed: int, room: int) -> None:
    most = len(marked.ids) + room
    before = MarkedText(list(marked.ids), list(marked.types), list(marked.special), list(marked.changed))
    after = change(marked, list(WORDS), most, random.Random(seed))
    assert marked == before  # the same text is changed otherwise in another epoch
    assert len(after.ids) == len(after.types) == len(after.special) == len(after.changed) <= most
    assert [i for i, s in zip(after.ids, after.special, strict=True) if s] == [START, END, END]
    assert after.types == sorted(after.types) and after.ids[0] == START and after.ids[-1] == END
    if after.ids != before.ids:
        assert any(after.changed)
    if len(after.ids) == len(before.ids) and not any(after.changed):
        assert after.ids == before.ids
    if set(before.ids) == {START, END}:
        assert after == before  # there is no word to change


def test_each_sort_of_change_happens() -> None:
    ids = [START, *range(3, 13), END]
    marked = MarkedText(ids, [0] * len(ids), [i in (START, END) for i in ids], [False] * len(ids))
    rng = random.Random(5)
    seen = set()
    for _ in range(300):
        after = change(marked, list(WORDS), 20, rng)
        new = [i for i, changed in zip(after.ids, after.changed, strict=True) if changed]
        if len(after.ids) > len(ids):
            seen.add("put in")
        elif len(after.ids) < len(ids):
            seen.add("left out")
        elif sorted(after.ids) == sorted(ids) and len(new) >= 2:
            seen.add("swapped")
        elif set(after.ids) != set(ids):
            seen.add("replaced")
    assert seen == {"put in", "left out", "swapped", "replaced"}


def test_practice_finds_changes_in_new_texts() -> None:
    """Words that are put into texts are of another sort than the texts' own: in new texts they stand out."""
    rng = random.Random(0)
    own, other = WORDS[:12], WORDS[12:]
    practice = practise([" ".join(f"w{rng.choice(own)}" for _ in range(7)) for _ in range(200)], 200, lr=1e-2)
    practice.words = list(other)

    def found() -> float:
        texts = [[START, *rng.choices(own, k=7), END] for _ in range(100)]
        places = [rng.randint(1, 7) for _ in texts]
        for text, place in zip(texts, places, strict=True):
            text[place] = rng.choice(other)
        practice.model.eval()
        with torch.no_grad():
            logits = practice.token_head(practice.model(make_batch(texts)).hidden[-1])[:, 1:-1, 0]
        return float(np.mean(logits.argmax(1).numpy() + 1 == np.array(places)))

    assert found() < 0.5  # one in seven by chance
    while practice.step < practice.steps:
        practice.advance()
    assert practice.optimizer.param_groups[0]["lr"] < 1e-3  # it has come down to the end
    assert found() > 0.9


def test_embeddings_stay_and_layers_learn() -> None:
    practice = practise(ascending(40, random.Random(0)), 5)
    before = practice.model.tensors()
    for _ in range(5):
        practice.advance()
    after = practice.model.tensors()
    assert np.array_equal(before["embeddings.word.weight"], after["embeddings.word.weight"])
    assert not np.array_equal(before["layers.0.ffn.up.weight"], after["layers.0.ffn.up.weight"])
    # The head's last linear belongs to the labels.
    assert np.array_equal(before["head.out.weight"], after["head.out.weight"])


def test_seconds_of_pairs_are_exchanged() -> None:
    texts = [(f"w{i} w{i + 1}", f"w{i + 2} w{i + 3}") for i in range(3, 23)] * 4
    practice = practise(texts, 10)
    assert practice.pairs and 0.3 < np.mean(practice.strange) < 0.7
    for marked, strange, (_, second) in zip(practice.marked_texts, practice.strange, texts, strict=True):
        own = [i for i, t, s in zip(marked.ids, marked.types, marked.special, strict=True) if t and not s]
        assert strange == ([f"w{i}" for i in own] != second.split())
    practice.advance()
    # All seconds alike: none is strange.
    assert not any(practise([("w3 w4", "w5")] * 20, 10).strange)


def test_same_seed_same_practice() -> None:
    def run() -> TorchEncoder:
        practice = practise(ascending(40, random.Random(0)), 6, dropout=0.1)
        for _ in range(6):
            practice.advance()
        return practice.model

    a, b = run().tensors(), run().tensors()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def test_texts_without_words_are_refused() -> None:
    with pytest.raises(TrainingError, match="no words"):
        practise(["", ""], 10)


def test_divergence_is_named() -> None:
    practice = practise(ascending(40, random.Random(0)), 6)
    with torch.no_grad():
        practice.model.weight("layers.0.ffn.up.weight").fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"loss is nan at step 1 of 6 of replaced-token detection.*smaller --lr"):
        practice.advance()
