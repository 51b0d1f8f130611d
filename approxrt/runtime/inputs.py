"""Token ids from a caller: checked in full before anything runs, so that an error names the caller's index."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.errors import InputError, UnsupportedTaskError


def check_sequences(
    spec: ModelSpec,
    sequences: Sequence[Sequence[int] | np.ndarray],
    type_ids: Sequence[Sequence[int]] | None,
) -> tuple[list[np.ndarray], list[np.ndarray] | None]:
    """Return (ids, types) as int32 arrays; types are None where the caller gives none or the model knows none.

    Raises InputError for an empty batch or sequence, for too many tokens, and for ids that the model has not.
    """
    arrays = [as_ids(ids, i) for i, ids in enumerate(sequences)]
    if not arrays:
        raise InputError("the batch is empty: give at least one sequence")
    for i, ids in enumerate(arrays):
        if len(ids) == 0:
            raise InputError(f"sequence {i} is empty: give at least one token id")
        if len(ids) > spec.max_positions:
            raise InputError(
                f"sequence {i} has {len(ids)} tokens; the model has positions for {spec.max_positions}: cut it"
            )
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= spec.vocab_size:
            raise InputError(
                f"sequence {i} has token id {low if low < 0 else high}; "
                f"the vocabulary has ids 0 to {spec.vocab_size - 1}"
            )
    padding = padding_in_texts(spec)
    if padding is not None:
        for i, ids in enumerate(arrays):
            if (ids == padding).any():
                raise InputError(
                    f"sequence {i} has the padding token (id {padding}) inside, which this model counts no position "
                    "for: give sequences without padding"
                )
    if type_ids is None:
        return arrays, None
    if len(type_ids) != len(arrays):
        raise InputError(f"{len(type_ids)} lists of token types for {len(arrays)} sequences: give one a sequence")
    types = [as_ids(t, i, "token types") for i, t in enumerate(type_ids)]
    # A model without token types has one kind of token; RoBERTa's tokenizer says so with zeros.
    highest = max(spec.type_vocab_size, 1) - 1
    for i, (t, ids) in enumerate(zip(types, arrays, strict=True)):
        if len(t) != len(ids):
            raise InputError(f"sequence {i} has {len(ids)} token ids and {len(t)} token types: give as many")
        if int(t.min()) < 0 or int(t.max()) > highest:
            raise InputError(f"sequence {i} has token type {int(t.max())}; the model has types 0 to {highest}")
    return arrays, types if spec.type_vocab_size else None


def padding_in_texts(spec: ModelSpec) -> int | None:
    """The id that a text must not have inside: RoBERTa and MPNet count positions without padding tokens, wherever they
    stand."""
    return spec.pad_token_id if spec.architecture in ("roberta", "mpnet") else None


def refuse_per_token(spec: ModelSpec) -> None:
    """Raise UnsupportedTaskError for a model that has no logits of a whole text."""
    if spec.per_token:
        raise UnsupportedTaskError(
            f"a model for {spec.task_type} has logits of every token, not of a text: use token_logits"
        )


def require_per_token(spec: ModelSpec) -> None:
    """Raise UnsupportedTaskError for a model that has no logits of tokens."""
    if not spec.per_token:
        raise UnsupportedTaskError(f"a model for {spec.task_type} has no logits of tokens: use forward")


def as_ids(ids: Sequence[int] | np.ndarray, index: int, what: str = "token ids") -> np.ndarray:
    """One sequence as int32; anything but integers that fit is refused."""
    try:
        array = np.asarray(ids)
    except ValueError:
        raise InputError(f"sequence {index}: {what} must be a flat list of integers") from None
    if array.size == 0:
        return np.zeros(0, np.int32)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InputError(
            f"sequence {index}: {what} must be a flat list of integers, got "
            f"{array.ndim} dimension(s) of {array.dtype}; for one sequence write [[1, 2, 3]]"
        )
    limits = np.iinfo(np.int32)
    if int(array.min()) < limits.min or int(array.max()) > limits.max:
        raise InputError(f"sequence {index}: {what} do not fit 32 bits: {int(array.min())} to {int(array.max())}")
    return np.ascontiguousarray(array, np.int32)
