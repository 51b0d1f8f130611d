"""Offsets of a classifier's logits that a metric asks for: where the border between classes should lie.

Training lowers cross entropy, and the class with the largest logit is the likeliest one. That is best for accuracy; the
F1 score and the Matthews correlation of unbalanced classes want other borders. An offset a class moves them (Menon et
al. 2021, arXiv 2007.07314), and as a part of the last bias it costs nothing.

A few hundred labels place a border badly when the metric's own, jagged curve is searched. So the logits are made into
probabilities first, by one temperature and a bias a class (vector scaling, Guo et al. 2017, arXiv 1706.04599), and the
offsets maximise what the metric is expected to be under these (a plug-in rule: Koyejo et al. 2014, "Consistent binary
classification with generalized performance metrics"). `gain_of_offsets` tells by cross-fitting what that brings.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from approxrt.significance.bootstrap import Bootstrap, metric_gain
from approxrt.tasks.confusion import metric_of

WIDEST = 3.0  # nats that a border may move
STEPS = 61
ROUNDS = 3  # over the classes, where there are more than two


def logit_offsets(metric: str, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """f64[classes], of sum 0, to be added to logits [n, classes] whose labels are i64[n].

    metric   what should rise: one of `approxrt.tasks.confusion.metric_of`
    """
    count = logits.shape[1]
    temperature, bias = vector_scaling(logits, labels)
    scaled = logits / temperature + bias
    chances = np.exp(scaled - scaled.max(1, keepdims=True))
    chances /= chances.sum(1, keepdims=True)

    def expected(moved: np.ndarray) -> float:
        answers = np.eye(count)[(scaled + moved).argmax(1)]
        return float(metric_of(metric, chances.T @ answers))

    # From the middle outwards, so that of equal values the smallest move is taken.
    steps = np.linspace(-WIDEST, WIDEST, STEPS)
    steps = steps[np.argsort(np.abs(steps), kind="stable")]
    offsets = np.zeros(count)
    for _ in range(1 if count == 2 else ROUNDS):
        for place in range(1, count):
            trials = [expected(_with(offsets, place, step)) for step in steps]
            offsets = _with(offsets, place, float(steps[int(np.argmax(trials))]))
    found = temperature * (bias + offsets)
    return np.asarray(found - found.mean())


def vector_scaling(logits: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray]:
    """Return (temperature, bias f64[classes]) with the least cross entropy of softmax(logits / temperature + bias)."""
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    rows = np.arange(len(labels))
    spread = max(float(np.std(logits - logits.mean(1, keepdims=True))), 1e-6)
    scaled = np.asarray(logits, np.float64) / spread

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        found = log_softmax(x[0] * scaled + np.append(0.0, x[1:]), axis=1)
        wrong = np.exp(found)
        wrong[rows, labels] -= 1
        gradient = np.append((wrong * scaled).sum(1).mean(), wrong.mean(0)[1:])
        return -float(found[rows, labels].mean()), gradient

    start = np.append(1.0, np.zeros(logits.shape[1] - 1))
    # A slope of zero or less would say that the logits know nothing: nearly flat is as far as it goes.
    bounds = [(1e-2, 1e3)] + [(-20.0, 20.0)] * (logits.shape[1] - 1)
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return spread / float(best[0]), np.append(0.0, best[1:])


def gain_of_offsets(
    metric: str,
    logits: np.ndarray,
    labels: np.ndarray,
    folds: Sequence[np.ndarray],
    bootstrap: Bootstrap,
) -> tuple[float, float]:
    """Return (gain of the metric, share of resamples with one): each fold's texts with the offsets of the other folds'.

    Texts in no fold are left out.
    """
    moved = np.array(logits, np.float64)
    rows = np.concatenate(folds)
    for fold in folds:
        others = np.setdiff1d(rows, fold)
        moved[fold] += logit_offsets(metric, logits[others], labels[others])
    return metric_gain(metric, logits[rows], moved[rows], labels[rows], bootstrap)


def _with(offsets: np.ndarray, place: int, value: float) -> np.ndarray:
    out = offsets.copy()
    out[place] = value
    return out
