"""Entities of texts by a head that labels every token, as transformers' token-classification pipeline gives them.

`TokenTagger.prepare` turns texts into windows of tokens, `TokenTagger.finish` the logits of their tokens into
entities; the engine, or a server's queue, stands between the two. Both follow `TokenClassificationPipeline` of
transformers 5: the same words, offsets, groups and, in float32, scores.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.errors import InputError, TextTooLongError
from approxrt.runtime.tokenize import TextEncoder, window_type_ids

AGGREGATIONS = ("none", "simple", "first", "average", "max")

Entity = dict[str, Any]


@dataclass(frozen=True)
class TagOptions:
    """Say how texts are read and tokens become entities.

    aggregation    none: an entity a token {entity, score, index, word, start, end}. simple: neighbouring tokens of one
                   kind are one {entity_group, score, word, start, end}. first, average, max: the same of words, which
                   take the label of their first token, of their mean scores, or of their surest token
    ignore_labels  what is left out
    stride         texts over the limit are read in windows that share so many tokens; None: their end is not read
    max_length     tokens of a window, special ones included; None: the model's limit
    truncate       False: a text over the limit is an error. With a stride there is none
    words          texts are lists of words. They are joined by `delimiter`, to which start and end refer
    """

    aggregation: str = "simple"
    ignore_labels: Sequence[str] = ("O",)
    stride: int | None = None
    max_length: int | None = None
    truncate: bool = True
    words: bool = False
    delimiter: str = " "

    def __post_init__(self) -> None:
        if self.aggregation not in AGGREGATIONS:
            raise InputError(f"aggregation is {self.aggregation!r}; it must be one of {', '.join(AGGREGATIONS)}")
        labels = self.ignore_labels
        if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
            raise InputError(f"ignore_labels is {labels!r:.80}; it must be a list of labels")
        if not isinstance(self.delimiter, str):
            raise InputError(f"delimiter is {self.delimiter!r:.80}; it must be a str")
        if self.stride is not None and self.aggregation == "none":
            raise InputError(
                f"stride is {self.stride} with aggregation='none': tokens of two windows would be there twice; use "
                f"aggregation={', '.join(map(repr, AGGREGATIONS[1:]))}, or leave stride out"
            )


@dataclass(frozen=True)
class TagInputs:
    """Texts as windows of tokens.

    sentences   the texts, words joined
    windows     of each text, the `tokenizers.Encoding`s that are read
    starts      of each text that came in words, where each begins; empty for texts
    apart       words were tokenised one by one: offsets are those in a word
    truncated   the end of the text is not read
    """

    options: TagOptions
    sentences: list[str]
    windows: list[list[Any]]
    starts: list[list[int]]
    apart: bool
    truncated: list[bool]

    @property
    def ids(self) -> list[list[int]]:
        return [window.ids for windows in self.windows for window in windows]

    @property
    def type_ids(self) -> list[list[int]]:
        return [types for windows in self.windows for types in window_type_ids(windows)]


@dataclass
class _Token:
    """A token that is not a special one; `scores` are probabilities f32[labels]."""

    word: str
    scores: np.ndarray
    start: int
    end: int
    index: int
    is_subword: bool


class TokenTagger:
    """Turns texts into windows of tokens, and the logits of tokens into entities."""

    def __init__(self, text: TextEncoder, labels: Sequence[str]) -> None:
        self._text, self._labels = text, tuple(labels)
        whole = text.plain()
        self._tokenizer = whole
        data = json.loads(whole.to_str())
        model = data["model"]
        self._unknown = model.get("unk_id")
        if self._unknown is None and model.get("unk_token") is not None:
            self._unknown = whole.token_to_id(model["unk_token"])
        self._marks_subwords = bool(getattr(whole.model, "continuing_subword_prefix", None))
        # Byte-level tokens begin with their space; words by themselves would be read as one run without any.
        self._joins_words = needs_spaces(data["pre_tokenizer"])

    # -- texts ----------------------------------------------------------------

    def prepare(self, texts: Any, options: TagOptions) -> TagInputs:
        """Windows of one text or of many. Raises InputError, and TextTooLongError for one that may not be cut."""
        items = self._checked(texts, options)
        sentences = [options.delimiter.join(item) if options.words else item for item in items]
        starts = [word_starts(item, options.delimiter) if options.words else [] for item in items]
        apart = options.words and not self._joins_words
        length = self.length(options.max_length, options.stride)
        kind = "words" if apart else "text"
        found = self._text.windows(items if apart else sentences, length, options.stride, kind)
        truncated = [options.stride is None and len(windows) > 1 for windows in found]
        if not options.truncate and any(truncated):
            raise TextTooLongError(
                f"text {truncated.index(True)} has more than {length} tokens: shorten it, call with truncate=True, or "
                "give a stride"
            )
        if options.stride is None:
            found = [windows[:1] for windows in found]
        return TagInputs(options, sentences, found, starts, apart, truncated)

    def length(self, max_length: int | None, stride: int | None) -> int:
        """Tokens of a window. Raises InputError for sizes that do not fit the model or each other."""
        limit, specials = self._text.max_length, self._text.specials(False)
        length = limit if max_length is None else max_length
        if type(length) is not int or not specials < length <= limit:
            raise InputError(f"max_length is {max_length!r}; it must be a number between {specials + 1} and {limit}")
        if stride is not None and (type(stride) is not int or not 0 <= stride < length - specials):
            raise InputError(
                f"stride is {stride!r}; it must be a number between 0 and {length - specials - 1}: windows have "
                f"{length} tokens, {specials} of them special ones, and must move on"
            )
        return length

    def _checked(self, texts: Any, options: TagOptions) -> list[Any]:
        if options.words:
            single = isinstance(texts, list | tuple) and bool(texts) and all(isinstance(part, str) for part in texts)
            items = [texts] if single else texts
        else:
            items = [texts] if isinstance(texts, str) else texts
        what = "a list of words" if options.words else "a str"
        if not isinstance(items, list | tuple):
            raise InputError(f"texts must be {what} or a list of those, got {type(texts).__name__}")
        if not items:
            raise InputError("the batch is empty: give at least one text")
        for i, item in enumerate(items):
            if options.words:
                sound = isinstance(item, list | tuple) and all(isinstance(word, str) for word in item)
            else:
                sound = isinstance(item, str)
            if not sound:
                raise InputError(f"text {i} must be {what}, got {type(item).__name__}: {item!r:.80}")
            if not any(word.strip() for word in ([item] if isinstance(item, str) else item)):
                raise InputError(f"text {i} is empty: give some text")
        return [item if isinstance(item, str) else list(item) for item in items]

    # -- entities -------------------------------------------------------------

    def finish(self, inputs: TagInputs, logits: Sequence[np.ndarray]) -> list[list[Entity]]:
        """Entities of each text, of the logits float32 [tokens, labels] of each window."""
        options, rows = inputs.options, iter(logits)
        answers = []
        for sentence, windows, starts in zip(inputs.sentences, inputs.windows, inputs.starts, strict=True):
            found: list[Entity] = []
            for window in windows:
                tokens = self._tokens(sentence, window, softmax(next(rows)), starts if inputs.apart else None)
                entities = self._entities(tokens, options.aggregation)
                found += [e for e in entities if e.get("entity", e.get("entity_group")) not in options.ignore_labels]
            answers.append(_without_overlaps(found) if len(windows) > 1 else found)
        return answers

    def word_labels(self, inputs: TagInputs, logits: Sequence[np.ndarray]) -> list[list[str]]:
        """The label of each word of texts that came in words: the best of its first token.

        Of a word in several windows, that of the window where it is furthest from an edge. A word that has no token, or
        is behind what was read, is outside of all entities: "O", or the first label of a model without it.
        """
        rows, outside = iter(logits), "O" if "O" in self._labels else self._labels[0]
        answers = []
        for i, windows in enumerate(inputs.windows):
            count = len(inputs.starts[i])
            labels, margins = [outside] * count, [-1] * count
            for window in windows:
                best = next(rows).argmax(axis=1)
                for token, word in first_tokens(window, self.word_ids(inputs, i, window)):
                    margin = min(token, len(best) - 1 - token)
                    if margin > margins[word]:
                        labels[word], margins[word] = self._labels[best[token]], margin
            answers.append(labels)
        return answers

    def word_ids(self, inputs: TagInputs, text: int, window: Any) -> list[int | None]:
        """The word of each token of a window of that text, which came in words; None: of no word."""
        if inputs.apart:
            return list(window.word_ids)
        return words_by_place(window, inputs.starts[text])

    def _tokens(self, sentence: str, window: Any, scores: np.ndarray, starts: list[int] | None) -> list[_Token]:
        found = []
        special, words = window.special_tokens_mask, window.word_ids
        for i, (token, (start, end)) in enumerate(zip(window.ids, window.offsets, strict=True)):
            if special[i]:
                continue
            if starts is not None and words[i] is not None:
                start, end = start + starts[words[i]], end + starts[words[i]]
            word, text = self._tokenizer.id_to_token(token), sentence[start:end]
            if self._marks_subwords:
                subword = len(word) != len(text)
            else:
                subword = start > 0 and " " not in sentence[start - 1 : start + 1]
            if token == self._unknown:
                word, subword = text, False
            found.append(_Token(word, scores[i], start, end, i, subword))
        return found

    def _entities(self, tokens: list[_Token], aggregation: str) -> list[Entity]:
        if aggregation in ("none", "simple"):
            entities = []
            for token in tokens:
                best = int(token.scores.argmax())
                entities.append({
                    "entity": self._labels[best], "score": float(token.scores[best]), "index": token.index,
                    "word": token.word, "start": token.start, "end": token.end,
                })  # fmt: skip
        else:
            entities = [self._word(word, aggregation) for word in _words(tokens)]
        return entities if aggregation == "none" else self._groups(entities)

    def _word(self, tokens: list[_Token], aggregation: str) -> Entity:
        if aggregation == "first":
            scores = tokens[0].scores
        elif aggregation == "max":
            scores = max(tokens, key=lambda token: float(token.scores.max())).scores
        else:
            scores = np.mean([token.scores for token in tokens], axis=0)
        best = int(scores.argmax())
        return {
            "entity": self._labels[best], "score": float(scores[best]),
            "word": self._joined([token.word for token in tokens]), "start": tokens[0].start, "end": tokens[-1].end,
        }  # fmt: skip

    def _groups(self, entities: list[Entity]) -> list[Entity]:
        """Neighbours with the same tag are one, unless the next begins an entity (B-)."""
        groups: list[list[Entity]] = []
        for entity in entities:
            begins, tag = _tag(entity["entity"])
            if groups and not begins and tag == _tag(groups[-1][-1]["entity"])[1]:
                groups[-1].append(entity)
            else:
                groups.append([entity])
        return [
            {
                "entity_group": group[0]["entity"].split("-", 1)[-1],
                "score": float(np.mean([entity["score"] for entity in group])),
                "word": self._joined([entity["word"] for entity in group]),
                "start": group[0]["start"],
                "end": group[-1]["end"],
            }
            for group in groups
        ]

    def _joined(self, words: list[str]) -> str:
        decoder = self._tokenizer.decoder
        return " ".join(words) if decoder is None else str(decoder.decode(words))


def first_tokens(window: Any, word_ids: Sequence[int | None]) -> list[tuple[int, int]]:
    """(token, word) of the first token that each word has in the window."""
    found: list[tuple[int, int]] = []
    seen: set[int] = set()
    for token, word in enumerate(word_ids):
        if word is None or word in seen:
            continue
        seen.add(word)
        found.append((token, word))
    return found


def words_by_place(window: Any, starts: Sequence[int]) -> list[int | None]:
    """The word of each token of joined words that begin at `starts`; None: of no word."""
    return [
        # Where a token has its space, its last character is the word's.
        None if special or end <= start else int(np.searchsorted(starts, end - 1, side="right")) - 1
        for (start, end), special in zip(window.offsets, window.special_tokens_mask, strict=True)
    ]


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities along the last axis, in the array's own type."""
    shifted: np.ndarray = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted


def word_starts(words: Sequence[str], delimiter: str) -> list[int]:
    """Where each word begins in the words joined by `delimiter`."""
    lengths = [len(word) + len(delimiter) for word in words]
    return [0, *np.cumsum(lengths).tolist()][: len(words)]


def needs_spaces(pre_tokenizer: dict[str, Any] | None) -> bool:
    """Tell whether a word has other tokens by itself than behind a space: byte-level without a space before."""
    if pre_tokenizer is None:
        return False
    if pre_tokenizer["type"] == "Sequence":
        return any(needs_spaces(part) for part in pre_tokenizer["pretokenizers"])
    return pre_tokenizer["type"] == "ByteLevel" and not pre_tokenizer.get("add_prefix_space", True)


def _words(tokens: list[_Token]) -> list[list[_Token]]:
    words: list[list[_Token]] = []
    for token in tokens:
        if words and token.is_subword:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _tag(label: str) -> tuple[bool, str]:
    """(whether it begins an entity, its kind) of a label; one without B- or I- goes on."""
    if label.startswith(("B-", "I-")):
        return label[0] == "B", label[2:]
    return False, label


def _without_overlaps(entities: list[Entity]) -> list[Entity]:
    """Of entities of two windows at one place the longer, or the surer of equally long ones."""
    if not entities:
        return []
    ordered = sorted(entities, key=lambda entity: int(entity["start"]))
    kept, last = [], ordered[0]
    for entity in ordered:
        if last["start"] <= entity["start"] < last["end"]:
            sizes = entity["end"] - entity["start"], last["end"] - last["start"]
            if sizes[0] > sizes[1] or (sizes[0] == sizes[1] and entity["score"] > last["score"]):
                last = entity
        else:
            kept.append(last)
            last = entity
    return [*kept, last]
