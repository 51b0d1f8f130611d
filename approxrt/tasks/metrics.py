"""Compute what GLUE measures. Accuracy needs numpy only; the others need scikit-learn (and scipy, which it brings)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np

from approxrt.errors import InputError, MissingDependencyError
from approxrt.tasks.registry import REGRESSION_METRICS, Task, get_task


def compute_metrics(task: str | Task, outputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The task's metrics, the selecting one first.

    outputs  logits [n, classes], or predictions [n] (class numbers or scores);
             scores may be [n, 1]
    labels   [n]: class numbers, or float scores (for `csv`, floats mean regression)

    A metric that is undefined (the correlation of constant predictions) is 0.
    Raises InputError when the shapes do not fit, MissingDependencyError without scikit-learn.
    """
    task = get_task(task)
    outputs, labels = np.asarray(outputs), np.asarray(labels)
    if len(outputs) != len(labels) or not len(labels) or outputs.ndim not in (1, 2):
        raise InputError(f"outputs {list(outputs.shape)} do not fit {len(labels)} labels")
    predictions = scores(outputs) if _has_scores(task, labels) else classes(outputs)
    return {name: _defined(METRICS[name](predictions, labels)) for name in metric_names(task, labels)}


def metric_names(task: str | Task, labels: np.ndarray) -> tuple[str, ...]:
    """Return the names of the task's metrics, the selecting one first; `labels` as in `compute_metrics`."""
    task = get_task(task)
    return REGRESSION_METRICS if task.regression is None and _has_scores(task, labels) else task.metrics


def _has_scores(task: Task, labels: np.ndarray) -> bool:
    return task.regression if task.regression is not None else labels.dtype.kind == "f"


def classes(outputs: np.ndarray) -> np.ndarray:
    """Class numbers [n] of logits [n, classes]; the first of equal logits."""
    return outputs.argmax(axis=1) if outputs.ndim == 2 else outputs


def scores(outputs: np.ndarray) -> np.ndarray:
    """Scores [n] of [n] or [n, 1]."""
    if outputs.ndim == 2 and outputs.shape[1] != 1:
        raise InputError(f"outputs {list(outputs.shape)} are no scores: one column is needed")
    return outputs.reshape(-1)


def flip_rate(a: np.ndarray, b: np.ndarray) -> float:
    """Share of texts whose class differs between two outputs (logits [n, classes] or class numbers [n])."""
    first, second = classes(np.asarray(a)), classes(np.asarray(b))
    if first.shape != second.shape or not len(first):
        raise InputError(f"outputs of {len(first)} and {len(second)} texts cannot be compared")
    return float(np.mean(first != second))


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean(predictions == labels))


def f1(predictions: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1."""
    try:
        from sklearn.metrics import f1_score
    except ImportError:
        raise MissingDependencyError("scikit-learn", "compress", "the F1 score") from None
    return float(f1_score(labels, predictions, zero_division=0))


def matthews(predictions: np.ndarray, labels: np.ndarray) -> float:
    try:
        from sklearn.metrics import matthews_corrcoef
    except ImportError:
        raise MissingDependencyError("scikit-learn", "compress", "the Matthews correlation") from None
    with warnings.catch_warnings():
        # one class in labels and predictions: 0 by definition, and no reason to warn
        warnings.simplefilter("ignore")
        return float(matthews_corrcoef(labels, predictions))


def spearman(predictions: np.ndarray, labels: np.ndarray) -> float:
    return _correlation("spearmanr", predictions, labels)


def pearson(predictions: np.ndarray, labels: np.ndarray) -> float:
    return _correlation("pearsonr", predictions, labels)


def _correlation(name: str, predictions: np.ndarray, labels: np.ndarray) -> float:
    try:
        from scipy import stats
    except ImportError:
        raise MissingDependencyError("scikit-learn", "compress", "a correlation") from None
    if len(labels) < 2 or np.ptp(predictions) == 0 or np.ptp(labels) == 0:
        return math.nan  # scipy would warn and return this
    return float(getattr(stats, name)(predictions, labels)[0])


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "spearman": spearman,
    "pearson": pearson,
}


def primary(metrics: dict[str, float]) -> float:
    """The metric that selects: the first."""
    return next(iter(metrics.values()))


def _defined(value: float) -> float:
    return value if math.isfinite(value) else 0.0
