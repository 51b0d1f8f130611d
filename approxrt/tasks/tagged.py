"""Words with tags, for token classification: CoNLL's columns, and .jsonl with words and tags or a text and spans.

Tags are IOB2 (B-PER, I-PER, O), IOBES or BILOU (S- and E-, or U- and L-), IO (I- alone) or names without a prefix, one
scheme a file. They are kept as the file has them but for BILOU's letters, which become IOBES'. Every error names file
and line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from approxrt.errors import DataError
from approxrt.tasks.rows import numbered_lines, read_file

TAGGED_SUFFIXES = (".tsv", ".txt", ".conll", ".jsonl")
OUTSIDE = "O"
_PREFIXED = re.compile(r"([BIESLU])-(.+)")
_BILOU = {"L": "E", "U": "S"}
_WORDS, _TAGS, _SPANS = ("words", "tokens"), ("tags", "ner_tags", "labels"), ("spans", "entities")
# What is a word of a text that comes with spans: letters and digits, or a mark by itself.
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class TaggedSentence:
    """Words and as many tags; `line` is where the sentence begins in its file."""

    words: tuple[str, ...]
    tags: tuple[str, ...]
    line: int


def kind_of(tag: str) -> str | None:
    """The kind of entity that a tag is of: PER of B-PER, and of PER; None of O."""
    if tag == OUTSIDE:
        return None
    found = _PREFIXED.fullmatch(tag)
    return found[2] if found else tag


def kinds_of(tags: Sequence[str]) -> tuple[str, ...]:
    """The kinds of entities that tags name, in their order."""
    return tuple(dict.fromkeys(kind for tag in tags if (kind := kind_of(tag)) is not None))


def read_tagged(path: str | Path) -> list[TaggedSentence]:
    """Every sentence of a file: two or more columns (the word first, the tag last, a blank line between sentences), or
    .jsonl. Columns of .tsv files are divided by tabs, those of others by white space. Raises DataError.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in TAGGED_SUFFIXES:
        raise DataError(
            f"{file}: a file ending in {file.suffix or 'nothing'} has no tagged words; use {', '.join(TAGGED_SUFFIXES)}"
        )
    text = read_file(file)
    sentences = list(_json_sentences(file, text) if suffix == ".jsonl" else _column_sentences(file, text, suffix))
    if not sentences:
        raise DataError(f"{file}: no sentences in it: write a word and its tag a line")
    _check_scheme(file, sentences)
    return [TaggedSentence(sentence.words, tuple(map(iobes, sentence.tags)), sentence.line) for sentence in sentences]


def iobes(tag: str) -> str:
    """The tag with IOBES' letters in the place of BILOU's."""
    found = _PREFIXED.fullmatch(tag)
    return f"{_BILOU.get(found[1], found[1])}-{found[2]}" if found else tag


def _check_scheme(file: Path, sentences: Sequence[TaggedSentence]) -> None:
    """Raise DataError for tags with and without a prefix in one file, and for one that has nothing but O."""
    first: dict[bool, tuple[str, int]] = {}
    for sentence in sentences:
        for tag in sentence.tags:
            if tag != OUTSIDE:
                first.setdefault(_PREFIXED.fullmatch(tag) is not None, (tag, sentence.line))
    if len(first) == 2:
        (a, at), (b, where) = first[True], first[False]
        raise DataError(
            f"{file}:{where}: tag {b!r} has no prefix, and {a!r} (line {at}) has one: write all of them as B-X and I-X "
            "(S-X and E-X), or none"
        )
    if not first:
        raise DataError(f"{file}: all tags are {OUTSIDE}: there is no entity in it")


# -- columns --------------------------------------------------------------------


def _column_sentences(file: Path, text: str, suffix: str) -> Iterator[TaggedSentence]:
    words: list[str] = []
    tags: list[str] = []
    columns: int | None = None
    begin = last = 0
    for line, content in numbered_lines(text):
        if words and line != last + 1:
            yield TaggedSentence(tuple(words), tuple(tags), begin)
            words, tags = [], []
        last = line
        cells = [cell.strip() for cell in content.split("\t")] if suffix == ".tsv" else content.split()
        if cells[0] == "-DOCSTART-":
            continue
        if len(cells) < 2 or (columns is not None and len(cells) != columns):
            between = "a tab" if suffix == ".tsv" else "white space"
            raise DataError(
                f"{file}:{line}: {len(cells)} columns where {columns or 'at least 2'} are needed: a word, {between}, "
                "its tag; a blank line ends a sentence"
            )
        columns = len(cells)
        _check_word(f"{file}:{line}", cells[0], cells[-1])
        if not words:
            begin = line
        words.append(cells[0])
        tags.append(cells[-1])
    if words:
        yield TaggedSentence(tuple(words), tuple(tags), begin)


def _check_word(place: str, word: Any, tag: Any) -> None:
    if not isinstance(word, str) or not word.strip():
        raise DataError(f"{place}: word {word!r:.80} is none: write it, or leave it out with its tag")
    if not isinstance(tag, str) or not tag.strip():
        raise DataError(f"{place}: tag {tag!r:.80} of the word {word!r:.80} is no name: write O outside of entities")
    if tag[1:2] == "-" and _PREFIXED.fullmatch(tag) is None:
        raise DataError(
            f"{place}: tag {tag!r:.80} is of no scheme that is known: IOB2 (B-X, I-X, O), IOBES or BILOU, IO, or names "
            "without a prefix"
        )


# -- JSON -----------------------------------------------------------------------


def _json_sentences(file: Path, text: str) -> Iterator[TaggedSentence]:
    for line, content in numbered_lines(text):
        place = f"{file}:{line}"
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON ({error}); every line is an object of its own") from None
        names = [_field(entry, choices) for choices in (_WORDS, _TAGS, _SPANS)] if isinstance(entry, dict) else []
        if names and names[0] and names[1]:
            words, tags = entry[names[0]], entry[names[1]]
            if not isinstance(words, list) or not isinstance(tags, list) or len(words) != len(tags) or not words:
                counts = [len(part) if isinstance(part, list) else repr(part)[:40] for part in (words, tags)]
                raise DataError(f"{place}: {counts[0]} {names[0]} and {counts[1]} {names[1]}: two lists of one length")
            for word, tag in zip(words, tags, strict=True):
                _check_word(place, word, tag)
            yield TaggedSentence(tuple(words), tuple(tag.strip() for tag in tags), line)
        elif names and isinstance(entry.get("text"), str) and names[2]:
            yield _from_spans(place, line, entry["text"], entry[names[2]])
        else:
            raise DataError(
                f"{place}: an object is needed with {' or '.join(_WORDS)} and {', '.join(_TAGS)}, or with text and "
                f"{' or '.join(_SPANS)}"
            )


def _field(entry: dict[str, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in entry), None)


def _from_spans(place: str, line: int, text: str, spans: Any) -> TaggedSentence:
    """Words of a text, which end where spans do, with IOB2 tags."""
    found = sorted(_checked_span(place, text, span) for span in _as_list(place, spans))
    for (_, end, label), (start, stop, other) in pairwise(found):
        if start < end:
            raise DataError(
                f"{place}: spans of {label!r} and {other!r} overlap in {text[start : min(end, stop)]!r:.80}: a "
                "character belongs to one entity, so keep one of them"
            )
    words: list[str] = []
    tags: list[str] = []
    at = 0
    for start, end, label in [*found, (len(text), len(text), OUTSIDE)]:
        before, inside = _WORD.findall(text[at:start]), _WORD.findall(text[start:end])
        words += before + inside
        tags += [OUTSIDE] * len(before) + [f"{'B' if i == 0 else 'I'}-{label}" for i in range(len(inside))]
        at = end
    if not words:
        raise DataError(f"{place}: the text {text!r:.80} has no word: leave the line out")
    return TaggedSentence(tuple(words), tuple(tags), line)


def _as_list(place: str, spans: Any) -> list[Any]:
    if not isinstance(spans, list):
        raise DataError(f"{place}: spans are {spans!r:.80}; a list of {{start, end, label}} is needed")
    return spans


def _checked_span(place: str, text: str, span: Any) -> tuple[int, int, str]:
    values = [span.get(name) for name in ("start", "end", "label")] if isinstance(span, dict) else [None] * 3
    start, end, label = values
    if type(start) is not int or type(end) is not int or not isinstance(label, str) or not label.strip():
        raise DataError(f"{place}: span {span!r:.80}: {{start, end, label}} with two numbers and a name is needed")
    if not 0 <= start < end <= len(text):
        raise DataError(f"{place}: span {start} to {end} is not within the text of {len(text)} characters")
    if not _WORD.search(text[start:end]):
        raise DataError(f"{place}: span {start} to {end} is {text[start:end]!r:.80}, which has no word")
    return start, end, label.strip()
