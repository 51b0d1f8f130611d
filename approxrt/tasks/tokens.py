"""One way to data of tasks whose head reads every token: words with tags (ner), questions with answers (qa)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from approxrt.tasks.entities import as_the_model_has, entity_metrics, predict_tags
from approxrt.tasks.questions import QUESTION_SUFFIXES, Question, read_questions
from approxrt.tasks.registry import Task
from approxrt.tasks.squad import answer_metrics, predict_answers
from approxrt.tasks.tagged import TAGGED_SUFFIXES, TaggedSentence, read_tagged

Progress = Callable[[int], None]


@dataclass(frozen=True)
class TaggedData:
    """Sentences of one file."""

    file: Path
    examples: Sequence[TaggedSentence]

    def evaluate(self, model: Any, progress: Progress | None = None) -> tuple[dict[str, float], list[str]]:
        """Return (metrics, the tag of every word). Raises DataError for entities that the model does not know."""
        truth = as_the_model_has(self.examples, model.labels, self.file)
        tags = predict_tags(model, self.examples, progress)
        return entity_metrics(tags, truth), [tag for row in tags for tag in row]


@dataclass(frozen=True)
class QuestionData:
    """Questions of one file."""

    file: Path
    examples: Sequence[Question]

    def evaluate(self, model: Any, progress: Progress | None = None) -> tuple[dict[str, float], list[str]]:
        """Return (metrics, the answer to every question)."""
        answers = predict_answers(model, self.examples, progress)
        return answer_metrics(answers, self.examples), answers


TokenData = TaggedData | QuestionData


def suffixes_of(task: Task) -> tuple[str, ...]:
    """The suffixes of a task's files."""
    return TAGGED_SUFFIXES if task.truth == "tags" else QUESTION_SUFFIXES


def read(task: Task, path: str | Path) -> TokenData:
    """Read one file of task ner or qa. Raises DataError."""
    file = Path(path)
    return TaggedData(file, read_tagged(file)) if task.truth == "tags" else QuestionData(file, read_questions(file))


def compare(a: Sequence[str], b: Sequence[str]) -> float:
    """Share of words with another tag, or of questions with another answer."""
    return sum(x != y for x, y in zip(a, b, strict=True)) / len(a)
