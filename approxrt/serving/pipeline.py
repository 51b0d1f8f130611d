"""A callable in the manner of transformers' pipelines: `pipeline("text-classification", ARTIFACT)("a text")`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from approxrt.errors import InputError, TruncationWarning
from approxrt.runtime.loading import load
from approxrt.runtime.model import Model

CLASSIFICATION = ("text-classification", "sentiment-analysis")
TASKS = (*CLASSIFICATION, "feature-extraction")


def pipeline(
    task: str, model: str | os.PathLike[str] | Model, threads: int | None = None, top_k: int | None = 1
) -> Callable[..., Any]:
    """A callable for `task`, one of text-classification (sentiment-analysis) and feature-extraction.

    Texts in, what transformers' pipeline of that task returns out. Texts over the model's limit are cut.
    Raises InputError for another task, or one that the artifact is not for.
    """
    if task not in TASKS:
        raise InputError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
    loaded = model if isinstance(model, Model) else load(model, device="cpu", threads=threads)
    if task == "feature-extraction":
        return FeatureExtraction(loaded)
    if not loaded.labels:
        raise InputError(f"{str(loaded.path)!r} has no labels: use task feature-extraction")
    return TextClassification(loaded, top_k)


class TextClassification:
    """See `pipeline`."""

    def __init__(self, model: Model, top_k: int | None) -> None:
        self.model, self.top_k = model, top_k

    def __call__(self, inputs: Any, top_k: int | str | None = "default", function_to_apply: str | None = None) -> Any:
        """[{label, score}] of one text or of each of a list; with `top_k` other than 1 lists of them, None: all.

        inputs              a text, {text, text_pair}, or a list of either
        function_to_apply   softmax, sigmoid or none; default: what fits the model
        """
        items = list(inputs) if isinstance(inputs, Sequence) and not isinstance(inputs, str) else [inputs]
        texts = [_text(item, i) for i, item in enumerate(items)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            logits = self.model.logits(texts)
        scores = _applied(logits, function_to_apply) if function_to_apply else self.model.scores(logits)
        wanted = self.top_k if top_k == "default" else top_k
        if wanted is not None and (type(wanted) is not int or wanted < 1):
            raise InputError(f"top_k is {wanted!r}; it must be a number of at least 1, or None for all labels")
        answers = [
            [{"label": self.model.labels[j], "score": float(row[j])} for j in np.argsort(-row, kind="stable")[:wanted]]
            for row in scores
        ]
        if wanted == 1:
            return [answer[0] for answer in answers]
        # transformers gives one text's labels as a list of their own only if it came in a list.
        return answers if isinstance(inputs, (list, tuple)) else answers[0]


class FeatureExtraction:
    """See `pipeline`: hidden states of the last layer, before pooling."""

    def __init__(self, model: Model) -> None:
        self.model = model

    def __call__(self, inputs: str | Sequence[str]) -> Any:
        """Nested lists [1, tokens, hidden] of one text; a list of those for a list."""
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        encoded = self.model.encode(texts)
        states = [
            [self.model.hidden_states(ids, types).tolist()]
            for ids, types in zip(encoded.ids, encoded.type_ids, strict=True)
        ]
        return states[0] if isinstance(inputs, str) else states


def _text(item: Any, index: int) -> Any:
    if isinstance(item, Mapping):
        if not isinstance(item.get("text"), str):
            raise InputError(f"input {index} has no text under 'text'")
        return (item["text"], str(item["text_pair"])) if item.get("text_pair") is not None else item["text"]
    return item


def _applied(logits: np.ndarray, function: str) -> np.ndarray:
    wide = logits.astype(np.float64)
    if function == "none":
        return wide
    if function == "sigmoid":
        return 1.0 / (1.0 + np.exp(-wide))
    if function == "softmax":
        shifted = np.exp(wide - wide.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)
    raise InputError(f"function_to_apply is {function!r}; it must be softmax, sigmoid or none")
