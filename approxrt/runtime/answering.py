"""Answers that stand in a text, by a head that scores where they begin and end.

The algorithm is that of transformers' question-answering pipeline (its version 4): the question and windows of the
context are read together; a span's score in a window is the product of the probabilities of its begin and its end,
over the context's tokens and the first special token, which stands for "no answer"; equal answers add up.

`Answerer.prepare` turns questions into windows of tokens, `Answerer.finish` the logits of their tokens into answers;
the engine, or a server's queue, stands between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.errors import InputError
from approxrt.runtime.tagging import softmax
from approxrt.runtime.tokenize import TextEncoder, window_type_ids

# The pipeline's own defaults, where they fit the model.
MAX_LENGTH, STRIDE = 384, 128

Answer = dict[str, Any]
NO_ANSWER: Answer = {"score": 0.0, "start": 0, "end": 0, "answer": ""}


@dataclass(frozen=True)
class AnswerOptions:
    """Say how contexts are read and which answers are given.

    top_k                     how many answers, best first
    max_answer_len            tokens of an answer, at most
    max_length                tokens of question, window of context and specials together; None: 384, or the model's
                              limit if that is less
    stride                    tokens that a window shares with the next; None: 128, or half of a window if that is less
    max_question_len          tokens of a question that are read; None: all
    handle_impossible_answer  "" is an answer, too, of the score that the windows give it at least
    no_answer_threshold       with it, "" comes first only where its score is over the best answer's by more than this
    align_to_words            answers end where words do
    """

    top_k: int = 1
    max_answer_len: int = 15
    max_length: int | None = None
    stride: int | None = None
    max_question_len: int | None = None
    handle_impossible_answer: bool = False
    no_answer_threshold: float = 0.0
    align_to_words: bool = True

    def __post_init__(self) -> None:
        for name in ("top_k", "max_answer_len", "max_question_len"):
            value = getattr(self, name)
            if (value is not None or name != "max_question_len") and (type(value) is not int or value < 1):
                raise InputError(f"{name} is {value!r}; it must be a number of at least 1")
        threshold = self.no_answer_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not -1 <= threshold <= 1:
            raise InputError(f"no_answer_threshold is {threshold!r}; it must be a number between -1 and 1")
        if threshold and not self.handle_impossible_answer:
            raise InputError(
                f"no_answer_threshold is {threshold!r} without handle_impossible_answer: give that, too, or leave both "
                "out"
            )


@dataclass(frozen=True)
class AnswerInputs:
    """Questions as windows of tokens: of each question the `tokenizers.Encoding`s that are read, and its context."""

    options: AnswerOptions
    contexts: list[str]
    windows: list[list[Any]]

    @property
    def ids(self) -> list[list[int]]:
        return [window.ids for windows in self.windows for window in windows]

    @property
    def type_ids(self) -> list[list[int]]:
        return [types for windows in self.windows for types in window_type_ids(windows)]


class Answerer:
    """Turns questions with their contexts into windows of tokens, and the logits of tokens into answers."""

    def __init__(self, text: TextEncoder) -> None:
        self._text = text

    def prepare(self, questions: Any, contexts: Any, options: AnswerOptions) -> AnswerInputs:
        """Windows of one question or of many; one context may be for all of them. Raises InputError."""
        asked, texts = _checked(questions, contexts)
        length, stride = self._sizes(options)
        if options.max_question_len is not None:
            asked = [self._cut(question, options.max_question_len) for question in asked]
        specials = self._text.specials(True)
        for i, count in enumerate(self._text.count_tokens(asked)):
            room = length - specials - count
            if room <= stride:
                raise InputError(
                    f"question {i} has {count} tokens; with {specials} special ones it leaves {max(room, 0)} of "
                    f"max_length={length} for the context, and stride={stride} needs more: shorten the question, or "
                    "give a smaller stride, a larger max_length or a max_question_len"
                )
        pairs = list(zip(asked, texts, strict=True))
        return AnswerInputs(options, texts, self._text.windows(pairs, length, stride, "pair", "only_second"))

    def _sizes(self, options: AnswerOptions) -> tuple[int, int]:
        limit = self._text.max_length
        length = min(limit, MAX_LENGTH) if options.max_length is None else options.max_length
        if type(length) is not int or not 1 <= length <= limit:
            raise InputError(f"max_length is {length!r}; it must be a number between 1 and {limit}")
        stride = min(length // 2, STRIDE) if options.stride is None else options.stride
        if type(stride) is not int or not 0 <= stride < length:
            raise InputError(f"stride is {stride!r}; it must be a number between 0 and {length - 1}, under max_length")
        return length, stride

    def _cut(self, question: str, tokens: int) -> str:
        encoding = self._text.plain().encode(question, add_special_tokens=False)
        return question if len(encoding.ids) <= tokens else question[: encoding.offsets[tokens - 1][1]]

    def finish(self, inputs: AnswerInputs, logits: Sequence[np.ndarray]) -> list[list[Answer]]:
        """The `top_k` best answers of each question, best first, of the logits float32 [tokens, 2] of each window."""
        return best_answers(inputs, logits)


def best_answers(inputs: AnswerInputs, logits: Sequence[np.ndarray]) -> list[list[Answer]]:
    """See `Answerer.finish`."""
    rows = iter(logits)
    return [
        _answers(context, [(window, next(rows)) for window in windows], inputs.options)
        for context, windows in zip(inputs.contexts, inputs.windows, strict=True)
    ]


def _answers(context: str, windows: list[tuple[Any, np.ndarray]], options: AnswerOptions) -> list[Answer]:
    answers: dict[str, Answer] = {}
    null = np.inf
    # Spans that end in the same words are one answer.
    wanted = options.top_k * 2 + 10 if options.align_to_words else options.top_k
    for window, scores in windows:
        start, end = _probabilities(window, scores)
        null = min(null, float(start[0] * end[0]))
        start[0] = end[0] = 0
        for s, e, score in _spans(start, end, _of_context(window), wanted, options.max_answer_len):
            place = _place(window, s, e, options.align_to_words)
            text = context[slice(*place)]
            known = answers.setdefault(text.lower(), {"score": 0.0, "start": place[0], "end": place[1], "answer": text})
            known["score"] += score
    found = sorted(answers.values(), key=lambda answer: -float(answer["score"]))
    if options.handle_impossible_answer:
        over = null - options.no_answer_threshold
        at = next((i for i, answer in enumerate(found) if answer["score"] < over), len(found))
        found.insert(at, NO_ANSWER | {"score": null})
    return found[: options.top_k] or [dict(NO_ANSWER)]


def _checked(questions: Any, contexts: Any) -> tuple[list[str], list[str]]:
    """As many questions as contexts. Raises InputError naming what is none."""
    asked = [questions] if isinstance(questions, str) else questions
    if not isinstance(asked, list | tuple):
        raise InputError(f"question must be a str or a list of those, got {type(questions).__name__}")
    texts = [contexts] * len(asked) if isinstance(contexts, str) else contexts
    if not isinstance(texts, list | tuple):
        raise InputError(f"context must be a str or a list of those, got {type(contexts).__name__}")
    if not asked:
        raise InputError("the batch is empty: give at least one question")
    if len(asked) != len(texts):
        raise InputError(f"{len(asked)} questions and {len(texts)} contexts: give a context for each, or one for all")
    for what, items in (("question", asked), ("context", texts)):
        for i, item in enumerate(items):
            if not isinstance(item, str):
                raise InputError(f"{what} {i} must be a str, got {type(item).__name__}: {item!r:.80}")
            if not item.strip():
                raise InputError(f"{what} {i} is empty: give some text")
    return list(asked), list(texts)


def _of_context(window: Any) -> np.ndarray:
    """bool[tokens]: where an answer may be."""
    return np.array([sequence == 1 for sequence in window.sequence_ids])


def _probabilities(window: Any, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """f32[tokens] that the answer begins, and that it ends, at each token of the context or at the first token."""
    possible = _of_context(window)
    possible[0] = True
    start, end = (softmax(np.where(possible, column, np.float32(-10000))) for column in logits.T)
    return start, end


def _spans(
    start: np.ndarray, end: np.ndarray, possible: np.ndarray, wanted: int, longest: int
) -> list[tuple[int, int, float]]:
    """(first token, last token, score) of the `wanted` best spans of at most `longest` tokens, best first."""
    scores = np.tril(np.triu(np.outer(start, end)), longest - 1)
    flat = scores.ravel()
    best = np.argpartition(-flat, wanted)[:wanted] if len(flat) > wanted else np.arange(len(flat))
    best = best[np.argsort(-flat[best], kind="stable")]
    found = []
    for s, e in zip(*np.unravel_index(best, scores.shape), strict=True):
        if possible[s] and possible[e] and s <= e < s + longest:
            found.append((int(s), int(e), float(scores[s, e])))
    return found


def _place(window: Any, s: int, e: int, align_to_words: bool) -> tuple[int, int]:
    """Characters of the context that tokens s to e stand for, or the words that they are in."""
    if align_to_words:
        words = window.token_to_word(s), window.token_to_word(e)
        if None not in words:
            first, last = (window.word_to_chars(word, sequence_index=1) for word in words)
            if first is not None and last is not None:
                return int(first[0]), int(last[1])
    return int(window.offsets[s][0]), int(window.offsets[e][1])
