"""Metrics of classes from confusion matrices, for many at a time.

`approxrt.tasks.metrics` reports one at a time by scikit-learn; a search over borders or resamples needs thousands.
"""

from __future__ import annotations

import numpy as np

from approxrt.errors import InputError

METRICS = ("accuracy", "f1", "matthews")


def confusion(predictions: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """f64[..., classes, classes] by label and prediction; predictions and labels i64[..., n] broadcast."""
    predictions, labels = np.broadcast_arrays(predictions, labels)
    flat = (labels * classes + predictions).reshape(-1, predictions.shape[-1])
    rows = np.arange(len(flat))[:, None] * classes**2
    counts = np.bincount((flat + rows).ravel(), minlength=len(flat) * classes**2)
    return counts.astype(np.float64).reshape(*predictions.shape[:-1], classes, classes)


def metric_of(name: str, matrix: np.ndarray) -> np.ndarray:
    """accuracy, f1 (of class 1) or matthews (Gorodkin 2004 for more than two classes) of f64[..., classes, classes].

    0 where it is undefined. Raises InputError for another name.
    """
    total, right = matrix.sum((-2, -1)), np.trace(matrix, axis1=-2, axis2=-1)
    labelled, predicted = matrix.sum(-1), matrix.sum(-2)
    if name == "accuracy":
        return _ratio(right, total)
    if name == "f1":
        return _ratio(2 * matrix[..., 1, 1], labelled[..., 1] + predicted[..., 1])
    if name == "matthews":
        covariance = right * total - (labelled * predicted).sum(-1)
        variances = (total**2 - (labelled**2).sum(-1)) * (total**2 - (predicted**2).sum(-1))
        return _ratio(covariance, np.sqrt(np.maximum(variances, 0)))
    raise InputError(f"{name} is no metric of a confusion matrix; those are {', '.join(METRICS)}")


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)
