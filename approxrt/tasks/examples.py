"""Texts as token ids with their labels: what models are run on and trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from approxrt.errors import DataError
from approxrt.runtime.tokenize import cut_to
from approxrt.tasks.readers import Dataset


@dataclass
class Examples:
    """Tokenised training examples; labels i64 classes, f32 scores, or None.

    labelled   examples from this one on have no label of their own (what `labels` has there says nothing)
    """

    ids: Sequence[Sequence[int]]
    types: Sequence[Sequence[int]]
    labels: np.ndarray | None
    # The same texts split into smaller tokens (ids, types): what a small vocabulary does to words it does not know.
    resplit: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]] | None = None
    labelled: int | None = None

    def subset(self, rows: np.ndarray) -> Examples:
        """Return the examples `rows` i64[n], with their labels."""
        ids, types = ([source[i] for i in rows] for source in (self.ids, self.types))
        return Examples(ids, types, None if self.labels is None else self.labels[rows])

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.ids])


def encode(dataset: Dataset, tokenizer_json: bytes, max_length: int) -> Examples:
    """Token ids and types of every text, cut to `max_length` tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
    tokenizer.no_padding()
    cut_to(tokenizer, max_length)
    encodings = tokenizer.encode_batch(dataset.texts)
    empty = [i for i, e in enumerate(encodings) if not e.ids]
    if empty:
        raise DataError(f"example {empty[0] + 1} gives no tokens: {dataset.texts[empty[0]]!r:.80}")
    return Examples([e.ids for e in encodings], [e.type_ids for e in encodings], dataset.labels)
