"""Define what trainings make small: errors to labels, and divergences from a teacher.

Distillation by Hinton et al. 2015 (arXiv 1503.02531), with errors of hidden states as in Kurtic et al. 2022 (arXiv
2203.07259).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


def label_errors(logits: Tensor, labels: Tensor) -> Tensor:
    """Return f32[b]: cross entropy of logits [b, classes], or squared errors of scores [b, 1] to labels of floats."""
    if labels.is_floating_point():
        return (logits[:, 0] - labels).square()
    return F.cross_entropy(logits, labels, reduction="none")


def teacher_errors(logits: Tensor, taught: Tensor, temperature: float, classes: bool) -> Tensor:
    """Return f32[b]: T^2 KL(teacher || model) at temperature T of logits [b, outputs], or of scores squared errors."""
    if not classes:
        return (logits - taught).square().mean(1)
    own, theirs = (F.log_softmax(x / temperature, 1) for x in (logits, taught))
    return temperature * temperature * F.kl_div(own, theirs, log_target=True, reduction="none").sum(1)


def vector_error(vectors: Tensor, taught: Tensor) -> Tensor:
    """Return one minus the mean cosine of f32[b, hidden] to the teacher's."""
    return (1 - F.cosine_similarity(vectors.float(), taught, dim=1)).mean()


def state_error(states: Tensor, taught: Tensor, mask: Tensor) -> Tensor:
    """Return the mean squared error of a layer's states [b, t, hidden] where `mask` f32[b, t, 1] is 1."""
    count = mask.sum().clamp(min=1) * states.shape[2]
    error = (states.float() - taught) * mask
    return error.square().sum() / count


@dataclass(frozen=True)
class LikelyTokens:
    """Hold what a teacher says of a sequence: its likeliest next tokens i32[tokens, n] and their log probabilities."""

    ids: Tensor
    log_probabilities: Tensor

    @staticmethod
    def of(logits: Tensor, count: int) -> LikelyTokens:
        """Return the `count` likeliest by logits f32[tokens, vocab]."""
        top = logits.topk(min(count, logits.shape[1]), dim=1)
        return LikelyTokens(top.indices.int(), top.values - logits.logsumexp(1, keepdim=True))


def likely_token_divergence(logits: Tensor, taught: list[LikelyTokens]) -> Tensor:
    """Return KL(teacher || model) of logits [b, tokens, vocab], in nats a token.

    Over the teacher's likeliest tokens, and all others as one.
    """
    ours = logits.float().log_softmax(-1)
    p = torch.stack([t.log_probabilities for t in taught])
    top = ours.gather(2, torch.stack([t.ids for t in taught]).long())
    rest, theirs = (torch.log1p(-x.exp().sum(2).clamp(max=1 - 1e-6)) for x in (top, p))
    return ((p.exp() * (p - top)).sum(2) + theirs.exp() * (theirs - rest)).mean()
