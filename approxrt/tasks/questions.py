"""Questions with their contexts and answers, for question answering: SQuAD's .json, and .jsonl.

A file of SQuAD 1.1 or 2.0 is one object: {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers":
[{"text", "answer_start"}], "is_impossible"}]}]}]}. A line of .jsonl is {"question", "context", "answers"}, with answers
as there or as {"text": [...], "answer_start": [...]}, and perhaps "id" and "is_impossible". A question without answers
has none in its context (SQuAD 2.0). Every answer must stand in its context where it says: an error names the file, the
line and the question.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from approxrt.errors import DataError
from approxrt.tasks.rows import numbered_lines, read_file

QUESTION_SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True)
class Question:
    """One question; `answers` are (text, first character in the context), none where the context has no answer."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    line: int

    @property
    def texts(self) -> list[str]:
        """The answers' texts."""
        return [text for text, _ in self.answers]


def read_questions(path: str | Path) -> list[Question]:
    """Every question of a file. Raises DataError."""
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix not in QUESTION_SUFFIXES:
        raise DataError(
            f"{file}: a file ending in {file.suffix or 'nothing'} has no questions; use {', '.join(QUESTION_SUFFIXES)}"
        )
    text = read_file(file)
    found = list(_of_lines(file, text) if suffix == ".jsonl" else _of_squad(file, text))
    if not found:
        raise DataError(f"{file}: no questions in it: give at least one")
    seen: dict[str, int] = {}
    for question in found:
        if question.id in seen:
            raise DataError(
                f"{file}:{question.line}: the id {question.id!r:.80} is that of line {seen[question.id]}, too: give "
                "every question one of its own"
            )
        seen[question.id] = question.line
    return found


def _of_lines(file: Path, text: str) -> Iterator[Question]:
    for line, content in numbered_lines(text):
        place = f"{file}:{line}"
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON ({error}); every line is an object of its own") from None
        if not isinstance(entry, dict):
            raise DataError(f"{place}: an object is needed with question, context and answers")
        yield _question(place, line, {"id": str(line), **entry}, entry.get("context"))


def _of_squad(file: Path, text: str) -> Iterator[Question]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: not JSON ({error.msg})") from None
    except RecursionError:
        raise DataError(f"{file}: its objects are nested too deep") from None
    at = 0
    for a, article in enumerate(_list(f"{file}", data, "data")):
        place = f"{file}: data[{a}]"
        for p, paragraph in enumerate(_list(place, article, "paragraphs")):
            where = f"{place}.paragraphs[{p}]"
            for q, entry in enumerate(_list(where, paragraph, "qas")):
                if not isinstance(entry, dict):
                    raise DataError(f"{where}.qas[{q}] is {entry!r:.80}; an object is needed")
                # Where the file has it: a parsed object does not know its line.
                found = text.find(json.dumps(entry.get("id")), at)
                at = max(at, found)
                line = text.count("\n", 0, at) + 1
                yield _question(
                    f"{file}:{line}: data[{a}].paragraphs[{p}].qas[{q}]", line, entry, paragraph.get("context")
                )


def _list(place: str, entry: Any, name: str) -> list[Any]:
    found = entry.get(name) if isinstance(entry, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{place}: a list {name!r} is needed, as SQuAD's files have it, got {found!r:.80}")
    return found


def _question(place: str, line: int, entry: dict[str, Any], context: Any) -> Question:
    for name, value in (("question", entry.get("question")), ("context", context)):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{place}: {name} is {value!r:.80}; a text is needed")
    answers = [] if entry.get("is_impossible") else _answers(place, entry.get("answers"))
    if entry.get("is_impossible") is False and not answers:
        raise DataError(
            f"{place}: is_impossible is false, and there is no answer: give one, or leave is_impossible out"
        )
    assert isinstance(context, str)
    for text, start in answers:
        if context[start : start + len(text)] != text:
            other = context.find(text)
            mend = f"it stands at {other}" if other >= 0 else "it does not stand in the context at all"
            there = context[start : start + len(text)]
            raise DataError(
                f"{place}: the answer {text!r:.80} is not at answer_start={start} of its context, where {there!r:.80} "
                f"stands: {mend}"
            )
    return Question(str(entry.get("id")), entry["question"], context, tuple(answers), line)


def _answers(place: str, answers: Any) -> list[tuple[str, int]]:
    if isinstance(answers, dict) and all(isinstance(answers.get(name), list) for name in ("text", "answer_start")):
        if len(answers["text"]) != len(answers["answer_start"]):
            raise DataError(
                f"{place}: answers have {len(answers['text'])} texts and {len(answers['answer_start'])} starts"
            )
        pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
    elif isinstance(answers, list) and all(isinstance(answer, dict) for answer in answers):
        pairs = [(answer.get("text"), answer.get("answer_start")) for answer in answers]
    else:
        raise DataError(
            f"{place}: answers are {answers!r:.80}; a list of {{text, answer_start}} is needed, empty where there is "
            "none"
        )
    for text, start in pairs:
        if not isinstance(text, str) or not text.strip() or type(start) is not int or start < 0:
            raise DataError(
                f"{place}: an answer is {text!r:.80} at {start!r:.20}; a text and its first character are needed"
            )
    return pairs
