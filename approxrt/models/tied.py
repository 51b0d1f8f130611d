"""The embedding table and the head of a decoder: one matrix, or two."""

from __future__ import annotations

import numpy as np

from approxrt.models.base import Weights

HEAD = "lm_head.weight"


def take_words(weights: Weights, table: str, vocab: int, hidden: int, tied: bool) -> bool:
    """Take the embedding table `table` and, where it is a matrix of its own, the head; whether they are one.

    As transformers 5 does: where config.json says that they are `tied` and the checkpoint has both, they are one if
    they are equal; with one of them alone, that is both.
    """
    has_table, has_head = weights.shape(weights.prefix + table) is not None, weights.shape(HEAD) is not None
    if tied and not has_table and has_head:
        weights.take("embeddings.word.weight", HEAD, (vocab, hidden), encoder=False)
        return True
    words = weights.take("embeddings.word.weight", table, (vocab, hidden))
    if tied and not has_head:
        return True
    head = weights.take("head.out.weight", HEAD, (vocab, hidden), encoder=False)
    if tied and np.array_equal(words, head):
        del weights.out["head.out.weight"]
        return True
    weights.out["head.out.bias"] = np.zeros(vocab, np.float32)
    return False
