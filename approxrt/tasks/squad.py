"""How well a model answers: exact match and F1 of words, as SQuAD's official script (version 2.0) counts them.

Texts are compared in lower case, without punctuation and articles. Of several right answers the one that fits best
counts; where the context has no answer, "" is right.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from approxrt.errors import InputError
from approxrt.tasks.questions import Question

PASS = 32  # questions that are answered at a time
MAX_ANSWER_LEN = 30  # tokens, as in SQuAD's baselines
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, right: str) -> float:
    return float(normalized(answer) == normalized(right))


def word_f1(answer: str, right: str) -> float:
    """Harmonic mean of the shares of common words; without words in one of them, whether both have none."""
    ours, theirs = normalized(answer).split(), normalized(right).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def answer_metrics(answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
    """{f1, exact_match}, between 0 and 1, of an answer for each question. Raises InputError."""
    if len(answers) != len(questions) or not questions:
        raise InputError(f"{len(answers)} answers do not fit {len(questions)} questions")
    f1, exact = [], []
    for answer, question in zip(answers, questions, strict=True):
        right = [text for text in question.texts if normalized(text)] or [""]
        f1.append(max(word_f1(answer, text) for text in right))
        exact.append(max(exact_match(answer, text) for text in right))
    return {"f1": float(np.mean(f1)), "exact_match": float(np.mean(exact))}


def predict_answers(
    model: Any, questions: Sequence[Question], progress: Callable[[int], None] | None = None
) -> list[str]:
    """The best answer to each question; "" is one where any question has no answer."""
    impossible = any(not question.answers for question in questions)
    found: list[str] = []
    for begin in range(0, len(questions), PASS):
        part = questions[begin : begin + PASS]
        given = model.answer(
            [question.question for question in part],
            [question.context for question in part],
            max_answer_len=MAX_ANSWER_LEN,
            handle_impossible_answer=impossible,
        )
        found += [answer["answer"] for answer in given]
        if progress:
            progress(len(part))
    return found
