"""Texts as token ids with their labels: what models are run on and trained with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np

from approxrt.errors import DataError
from approxrt.runtime.tokenize import cut_to
from approxrt.tasks.readers import Dataset

BATCH = 4096  # texts that are tokenised at once: what the tokenizer says of one takes 100 times its ids


class TokenLists(Sequence[list[int]]):
    """Lists of token ids in one array: a tenth of what as many lists of Python's integers take."""

    def __init__(self, rows: Iterable[Sequence[int] | np.ndarray] = ()) -> None:
        parts = [np.asarray(row, np.int32) for row in rows]
        self._tokens = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        self._ends = np.cumsum([0] + [len(part) for part in parts])

    @classmethod
    def joined(cls, parts: Sequence[TokenLists]) -> TokenLists:
        """Return the lists of all parts, in their order."""
        out = cls()
        out._tokens = np.concatenate([part._tokens for part in parts])
        out._ends = np.cumsum(np.concatenate([[0], *(part.lengths for part in parts)]))
        return out

    @property
    def lengths(self) -> np.ndarray:
        """i64[n]: tokens of each list."""
        return np.diff(self._ends)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[int]]: ...
    def __getitem__(self, index: int | slice) -> list[int] | list[list[int]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        row: list[int] = self._tokens[self._ends[at] : self._ends[at + 1]].tolist()
        return row


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
        if isinstance(self.ids, TokenLists):
            return self.ids.lengths
        return np.array([len(row) for row in self.ids])


def encode(dataset: Dataset, tokenizer_json: bytes, max_length: int) -> Examples:
    """Token ids and types of every text, cut to `max_length` tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
    tokenizer.no_padding()
    cut_to(tokenizer, max_length)
    ids, types = list[TokenLists](), list[TokenLists]()
    for start in range(0, len(dataset.texts), BATCH):
        encodings = tokenizer.encode_batch(dataset.texts[start : start + BATCH])
        for i, encoding in enumerate(encodings, start):
            if not encoding.ids:
                raise DataError(f"example {i + 1} gives no tokens: {dataset.texts[i]!r:.80}")
        ids.append(TokenLists(encoding.ids for encoding in encodings))
        types.append(TokenLists(encoding.type_ids for encoding in encodings))
    return Examples(TokenLists.joined(ids), TokenLists.joined(types), dataset.labels)
