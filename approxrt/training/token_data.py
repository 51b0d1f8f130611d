"""Words with tags, and questions, as windows of tokens with a target for every token: what token heads are trained on.

A text over the limit of tokens is trained in several windows, so that all of it teaches. What is behind a window's
targets (which word, which context) stays with it: predictions of the windows become tags of words, or answers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from approxrt.errors import DataError
from approxrt.runtime.answering import AnswerInputs, AnswerOptions, best_answers
from approxrt.runtime.tagging import first_tokens, needs_spaces, word_starts, words_by_place
from approxrt.runtime.tokenize import truncation_side, window_type_ids
from approxrt.tasks.entities import as_the_model_has, entity_metrics
from approxrt.tasks.questions import Question
from approxrt.tasks.squad import MAX_ANSWER_LEN, answer_metrics
from approxrt.tasks.tagged import OUTSIDE, kind_of
from approxrt.tasks.tokens import QuestionData, TaggedData

IGNORED = -100  # the target of tokens that have none


class TaggedWindows:
    """Sentences as windows; `labels` are i64[tokens] class numbers, or IGNORED.

    The first token of a word has its tag. With `all_pieces` its other tokens have it, too, as I- where it is B-.
    """

    def __init__(
        self, data: TaggedData, names: Sequence[str], tokenizer: Any, max_length: int, all_pieces: bool
    ) -> None:
        self._data, self._names = data, tuple(names)
        self._truth = as_the_model_has(data.examples, names, data.file)
        self._sizes = [len(sentence.words) for sentence in data.examples]
        self.ids: list[list[int]] = []
        self.types: list[list[int]] = []
        self.labels: list[np.ndarray] = []
        self._places: list[tuple[int, list[tuple[int, int]]]] = []  # (sentence, [(token, word)]) of each window
        numbers = {name: i for i, name in enumerate(names)}
        inside = {i: numbers.get(f"I-{kind_of(name)}", i) for name, i in numbers.items() if name.startswith("B-")}
        for s, (encoding, words) in enumerate(_encoded(data, tokenizer, max_length)):
            seen: set[int] = set()
            windows = [encoding, *encoding.overflowing]
            for window, types, of_word in zip(windows, window_type_ids(windows), words, strict=True):
                begun = [(token, word) for token, word in first_tokens(window, of_word) if word not in seen]
                seen |= {word for _, word in begun}
                if not begun:
                    continue
                target = np.full(len(window.ids), IGNORED, np.int64)
                for token, word in begun:
                    target[token] = numbers[self._as_known(self._truth[s][word], numbers)]
                if all_pieces:
                    tags = {word: int(target[token]) for token, word in begun}
                    for token, other in enumerate(of_word):
                        if target[token] == IGNORED and other in tags:
                            target[token] = inside.get(tags[other], tags[other])
                self.ids.append(window.ids)
                self.types.append(types)
                self.labels.append(target)
                self._places.append((s, begun))
        self.lengths = np.array([len(row) for row in self.ids])

    def metrics(self, logits: Sequence[np.ndarray]) -> dict[str, float]:
        """Of logits f32[tokens, labels] of each window. A word without a token is outside of all entities."""
        tags = [[OUTSIDE] * size for size in self._sizes]
        for (sentence, begun), rows in zip(self._places, logits, strict=True):
            for token, word in begun:
                tags[sentence][word] = self._names[int(rows[token].argmax())]
        return entity_metrics(tags, self._truth)

    def _as_known(self, tag: str, numbers: dict[str, int]) -> str:
        """The tag, or another of its kind where the labels, which come from other data, have not this one."""
        if tag in numbers:
            return tag
        return next(name for name in self._names if kind_of(name) == kind_of(tag))


def _encoded(data: TaggedData, tokenizer: Any, max_length: int) -> list[tuple[Any, list[list[int | None]]]]:
    """(encoding, of each window the word of each token) of every sentence."""
    tokenizer.enable_truncation(max_length, direction=truncation_side(tokenizer))
    sentences = [list(sentence.words) for sentence in data.examples]
    if not needs_spaces(json.loads(tokenizer.to_str())["pre_tokenizer"]):
        encodings = tokenizer.encode_batch(sentences, is_pretokenized=True)
        return [(e, [list(window.word_ids) for window in (e, *e.overflowing)]) for e in encodings]
    encodings = tokenizer.encode_batch([" ".join(words) for words in sentences])
    return [
        (e, [words_by_place(window, word_starts(words, " ")) for window in (e, *e.overflowing)])
        for e, words in zip(encodings, sentences, strict=True)
    ]


class QuestionWindows:
    """Questions with windows of their contexts; `labels` are i64[2], the answer's first and last token.

    A window without the (first) answer has its first token for both.
    """

    def __init__(self, data: QuestionData, tokenizer: Any, max_length: int) -> None:
        self._questions = data.examples
        stride = min(max_length // 2, 128)
        specials = tokenizer.num_special_tokens_to_add(True)
        tokenizer.no_truncation()
        for question, encoding in zip(
            data.examples,
            tokenizer.encode_batch([q.question for q in data.examples], add_special_tokens=False),
            strict=True,
        ):
            room = max_length - specials - len(encoding.ids)
            if room <= stride:
                raise DataError(
                    f"{data.file}:{question.line}: the question has {len(encoding.ids)} tokens, which leaves "
                    f"{max(room, 0)} of max_length={max_length} for its context, and windows share {stride}: shorten "
                    "it, or train with a larger --max-length"
                )
        tokenizer.enable_truncation(max_length, stride=stride, strategy="only_second", direction="right")
        pairs = [(q.question, q.context) for q in data.examples]
        windows = [[e, *e.overflowing] for e in tokenizer.encode_batch(pairs)]
        impossible = any(not q.answers for q in data.examples)
        options = AnswerOptions(max_answer_len=MAX_ANSWER_LEN, handle_impossible_answer=impossible)
        self._inputs = AnswerInputs(options, [q.context for q in data.examples], windows)
        self.ids, self.types = self._inputs.ids, self._inputs.type_ids
        spans = [_span(window, q) for q, each in zip(data.examples, windows, strict=True) for window in each]
        self.labels = [np.array(span, np.int64) for span in spans]
        self.lengths = np.array([len(row) for row in self.ids])

    def metrics(self, logits: Sequence[np.ndarray]) -> dict[str, float]:
        """Of logits f32[tokens, 2] of each window."""
        answers = [found[0]["answer"] for found in best_answers(self._inputs, logits)]
        return answer_metrics(answers, self._questions)


def _span(window: Any, question: Question) -> tuple[int, int]:
    """First and last token of the answer, or 0 and 0 where the window has not all of it."""
    if not question.answers:
        return 0, 0
    text, first = question.answers[0]
    first, last = first + len(text) - len(text.lstrip()), first + len(text.rstrip())
    context = [i for i, sequence in enumerate(window.sequence_ids) if sequence == 1]
    inside = [i for i in context if window.offsets[i][0] < last and window.offsets[i][1] > first]
    if not inside or window.offsets[context[0]][0] > first or window.offsets[context[-1]][1] < last:
        return 0, 0
    return inside[0], inside[-1]


TokenWindows = TaggedWindows | QuestionWindows
TokenDataset = TaggedData | QuestionData


def groups_of(data: TokenDataset) -> np.ndarray:
    """i64[n]: examples of one group belong on one side of a split: equal sentences, or questions of one context."""
    if isinstance(data, TaggedData):
        keys = [" ".join(example.words).lower() for example in data.examples]
    else:
        keys = [example.context for example in data.examples]
    return np.unique(np.array(keys, object), return_inverse=True)[1].astype(np.int64)


def subset(data: TokenDataset, rows: np.ndarray) -> Any:
    """The given examples, in that order."""
    chosen: Any = [data.examples[i] for i in rows]
    return dataclasses.replace(data, examples=chosen)


def label_names(data: TaggedData, known: Sequence[str] = ()) -> tuple[str, ...]:
    """The tags of the data, O first, then by kind; as a checkpoint has them, if it has the same."""
    found = {tag for sentence in data.examples for tag in sentence.tags} | {OUTSIDE}
    if set(known) == found:
        return tuple(known)
    return tuple(sorted(found, key=lambda tag: (tag != OUTSIDE, kind_of(tag) or "", "BIES".find(tag[:1]))))
