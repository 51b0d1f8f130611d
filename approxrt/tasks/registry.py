"""The tasks that approxrt knows by name: where texts and labels stand in their files, and what is measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from approxrt.errors import InputError

# What `approxrt.tasks.metrics` computes of labels; vectors and texts have measures of their own.
METRIC_NAMES = (
    "accuracy", "f1", "matthews", "spearman", "pearson", "cosine", "top1", "top10", "perplexity",
    "precision", "recall", "exact_match",
)  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One task.

    `text` (and `text_pair`) and `label` name columns; `columns` names those of a
    file without a header. `labels` are the class names in the order of the
    logits, None for regression or where the data decides; `raw_labels` are the
    words that stand for them in the file, None where it has the names. The first of `metrics` is the one that
    selects a model. `truth` is what answers are compared with: labels of a file,
    the vectors of the model before it is changed, the text itself, tags of words
    or answers that stand in a context. Raises InputError for a value that could
    not be meant.
    """

    name: str
    inputs: Literal["single", "pair", "any"]
    text: str
    text_pair: str | None
    label: str
    metrics: tuple[str, ...]
    labels: tuple[str, ...] | None = None
    raw_labels: tuple[str, ...] | None = None
    columns: tuple[str, ...] | None = None
    regression: bool | None = False
    truth: Literal["labels", "vectors", "text", "tags", "answers"] = "labels"

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z0-9]+", self.name):
            raise InputError(f"a task is called {self.name!r}: use lower-case letters and digits, nothing else")
        unknown = [name for name in self.metrics if name not in METRIC_NAMES]
        if unknown:
            raise InputError(f"task {self.name} has the metrics {list(self.metrics)}; known: {', '.join(METRIC_NAMES)}")
        if self.labels is None and self.raw_labels is not None:
            raise InputError(f"task {self.name} has raw_labels without labels: name the classes that they stand for")
        if self.labels is None:
            return
        if self.raw_labels is not None and len(self.raw_labels) != len(self.labels):
            raise InputError(f"task {self.name} has {len(self.labels)} labels and {len(self.raw_labels)} raw_labels")
        if len({plain_label(name) for name in self.labels}) != len(self.labels):
            raise InputError(f"two labels of task {self.name} differ in capitals, spaces, - and _ alone: {self.labels}")
        if "f1" in self.metrics and len(self.labels) != 2:
            raise InputError(f"task {self.name} has {len(self.labels)} classes, and f1 is that of class 1 of two")

    @property
    def unquoted_tsv(self) -> bool:
        """Tell whether a quotation mark in its .tsv files is a part of the text, as in GLUE's own."""
        return self.labels is not None or self.regression is True


def plain_label(name: str) -> str:
    """Return a class name as it is compared: lower case, with _ for spaces and -."""
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


_ENTAILS = ("entailment", "not_entailment")

# GLUE (Wang et al. 2018, arXiv 1804.07461): columns of its own .tsv files, class order as in transformers.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("sst2", "single", "sentence", None, "label", ("accuracy",), ("negative", "positive"), ("0", "1")),
        Task(
            "mrpc",
            "pair",
            "#1 String",
            "#2 String",
            "Quality",
            ("f1", "accuracy"),
            ("not_equivalent", "equivalent"),
            ("0", "1"),
        ),
        Task("rte", "pair", "sentence1", "sentence2", "label", ("accuracy",), _ENTAILS, _ENTAILS),
        Task(
            "cola",
            "single",
            "sentence",
            None,
            "label",
            ("matthews", "accuracy"),
            ("unacceptable", "acceptable"),
            ("0", "1"),
            columns=("source", "label", "note", "sentence"),
        ),
        Task("stsb", "pair", "sentence1", "sentence2", "score", ("spearman", "pearson"), regression=True),
        Task("qnli", "pair", "question", "sentence", "label", ("accuracy",), _ENTAILS, _ENTAILS),
        Task(
            "wnli",
            "pair",
            "sentence1",
            "sentence2",
            "label",
            ("accuracy",),
            ("not_entailment", "entailment"),
            ("0", "1"),
        ),
        # columns text[,text_pair],label; classes or scores as the data has them
        Task("csv", "any", "text", "text_pair", "label", ("accuracy",), regression=None),
        # a plain encoder, of which texts alone are known: its vectors are to stay
        Task("embed", "any", "text", "text_pair", "text", ("cosine", "top1", "top10"), truth="vectors"),
        # a decoder on a plain text
        Task("lm", "single", "text", None, "text", ("perplexity",), truth="text"),
        # words with tags: F1 of whole entities, accuracy of tags (`approxrt.tasks.tagged`, `approxrt.tasks.entities`)
        Task("ner", "single", "words", None, "tags", ("f1", "precision", "recall", "accuracy"), truth="tags"),
        # questions whose answers stand in their contexts (`approxrt.tasks.questions`, `approxrt.tasks.squad`)
        Task("qa", "pair", "question", "context", "answers", ("f1", "exact_match"), truth="answers"),
    )
}

REGRESSION_METRICS = ("spearman", "pearson")

# Other names of tasks, as `get_task` compares them.
_ALIASES = {"tokenclassification": "ner", "questionanswering": "qa", "squad": "qa"}
# What the models of tasks are for whose head reads every token: `ModelSpec.task_type`.
PER_TOKEN_TASKS = {"tags": "token_classification", "answers": "question_answering"}


def get_task(name: str | Task) -> Task:
    """The task of that name, written as in GLUE or as here (SST-2, sst2). Raises InputError."""
    if isinstance(name, Task):
        return name
    key = name.lower().replace("-", "").replace("_", "")
    key = _ALIASES.get(key, key)
    if key not in TASKS:
        raise InputError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return TASKS[key]


def labelled_task(name: str | Task, purpose: str) -> Task:
    """The same, of those with labels. Raises InputError for another, naming what for they are needed."""
    task = get_task(name)
    refuse_per_token(task, purpose)
    if task.truth != "labels":
        known = ", ".join(other.name for other in TASKS.values() if other.truth == "labels")
        raise InputError(f"task {task.name} has no labels, which {purpose} needs; tasks that have: {known}")
    return task


def refuse_per_token(task: Task, purpose: str) -> None:
    """Raise InputError for a task of words or spans, which `purpose` does not take."""
    if task.truth in PER_TOKEN_TASKS:
        known = ", ".join(other.name for other in TASKS.values() if other.truth == "labels")
        raise InputError(
            f"task {task.name} is for {PER_TOKEN_TASKS[task.truth]}, which {purpose} does not take; it takes {known}"
        )
