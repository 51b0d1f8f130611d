"""The words of a small artifact: which tokens keep a row of the embedding table, and in how many bits.

A vocabulary for the task (`task_vocabulary`) either spells the tokens that the training texts do not use with smaller
ones (`approxrt.vocabulary.prune`) or reads them as kept ones that the model treats alike
(`approxrt.vocabulary.row_sharing`). What new texts lose by either is measured: validation texts hold words that the
training texts do not, and the dense model answers them by both vocabularies.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from approxrt.artifact.spec.formats import GROUP_WEIGHTS, MAX_ROW_GROUP_SCALE
from approxrt.errors import InputError
from approxrt.models.checkpoint import Checkpoint
from approxrt.quantization import build
from approxrt.quantization.int4 import quantize_rows4
from approxrt.quantization.mixed_rows import frequent_rows, quantize_mixed
from approxrt.quantization.rtn import quantize_rows
from approxrt.random import Stream, generator
from approxrt.tasks.examples import Examples, TokenLists, encode
from approxrt.tasks.readers import Dataset
from approxrt.torch_models.encoder import TorchEncoder, predict
from approxrt.vocabulary.prune import PrunedVocabulary, apply_vocabulary, prune_vocabulary
from approxrt.vocabulary.row_sharing import share_rows, shares_rows, token_states

# Of the bytes that the artifact may have: where the words take more, four bits a weight, most rows get two.
TIGHT_SHARE = 0.5
WIDE_SHARE = 0.8  # of all uses of words in the training texts: those whose rows keep four bits then
# Where words share rows and bytes are not scarce, rows of two bits for the rarest of the texts' words pay for rows of
# common words that the texts do not have: on MRPC's dev file the dense model then strays 0.005 nats from its own
# answers, and 0.008 with a table as large that has the texts' words alone, all in four bits.
COMMON_WIDE_SHARE = 0.95
WORDS_SHARE = 0.35  # of the bytes that the artifact may have: what such a table may take, if that is more
# Uses in the training texts that a token needs for a row of its own where bytes are scarce and rows can be shared. Of
# SST-2's 11,184 tokens 9,235 have them; all the same the dense model's answers to unseen texts stray less from its own
# with the whole vocabulary (0.014 nats a text) than where 13,095 tokens have rows and no two share one (0.024).
TIGHT_COUNT = 5
RESPLIT_COUNT = 4  # a token that the training texts use less often may be split in training
COMPARED_TOKENS = 25_000  # of validation texts that two vocabularies are compared on, at most


@dataclass(frozen=True)
class TaskVocabulary:
    """Hold which tokens keep rows.

    shared    tokens without a row stand for others; else they are spelled with smaller ones
    tight     the rows of all tokens that the texts use would take too much with four bits a weight
    common    rows of tokens that the texts do not use
    """

    vocabulary: PrunedVocabulary
    shared: bool
    tight: bool
    common: int = 0

    @property
    def wide_share(self) -> float | None:
        """Return the share of all uses of words of those whose rows have four bits, while others have two; None for no
        such table."""
        return WIDE_SHARE if self.tight else COMMON_WIDE_SHARE if self.common else None


def is_tight(rows: int, width: int, tokenizer_json: bytes, allowed: float | None) -> bool:
    """Words and their names would take more than `TIGHT_SHARE` of the `allowed` bytes with four bits a weight."""
    return allowed is not None and rows * width / 2 + len(tokenizer_json) > TIGHT_SHARE * allowed


@dataclass(frozen=True)
class VocabularyOptions:
    """Say what a vocabulary is chosen under.

    length     tokens that texts are cut to
    allowed    bytes of the whole artifact; None: any
    seed       of the validation texts that are compared
    bits       of rows' weights; with 4, rows of 2 may pay for common words that the texts do not have
    shared     what an earlier call has found
    """

    length: int
    allowed: float | None
    seed: int = 0
    bits: int = 8
    shared: bool | None = None
    device: str | torch.device = "cpu"


def task_vocabulary(
    checkpoint: Checkpoint, train: Dataset, validation: Dataset, options: VocabularyOptions
) -> TaskVocabulary:
    """The vocabulary that changes the dense model's answers to validation texts less; see the module's text."""
    source, spec = checkpoint.tokenizer_json, checkpoint.spec
    length, allowed, shared = options.length, options.allowed, options.shared
    pruned = prune_vocabulary(source, train.texts)
    spelled = TaskVocabulary(
        pruned, False, is_tight(len(pruned.kept), spec.embedding_size, pruned.tokenizer_json, allowed)
    )
    if shared is False or not shares_rows(source):
        return spelled
    dense = TorchEncoder(spec, checkpoint.tensors, device=options.device)
    states = token_states(dense, source)
    sharing = share_rows(source, train.texts, states)
    tight = is_tight(len(sharing.kept), spec.embedding_size, sharing.tokenizer_json, allowed)
    common = 0
    if not tight and options.bits == 4 and allowed is not None:
        used = len(sharing.kept)
        room = _room(sharing, encode(train, sharing.tokenizer_json, length).ids, spec.embedding_size, allowed)
        sharing = share_rows(source, train.texts, states, common=room)
        common = len(sharing.kept) - used
    if tight:
        # Texts so few that they use no token that often: all of theirs keep their rows.
        with contextlib.suppress(InputError):
            sharing = share_rows(source, train.texts, states, TIGHT_COUNT)
    if shared is None:
        order = generator(options.seed, Stream.COMPARED_TEXTS).permutation(len(validation))
        tokens = np.cumsum(encode(validation, source, length).lengths[order])
        texts = validation.subset(np.sort(order[: max(16, int(np.searchsorted(tokens, COMPARED_TOKENS)))]))
        whole = encode(texts, source, length)
        wanted = predict(dense, whole.ids, whole.types)
        strays = []
        for vocabulary in (pruned, sharing):
            encoded = encode(texts, vocabulary.tokenizer_json, length)
            model = TorchEncoder(*apply_vocabulary(spec, checkpoint.tensors, vocabulary), device=options.device)
            found = predict(model, encoded.ids, encoded.types)
            strays.append(divergence(wanted, found, classes=spec.task_type == "classification"))
        shared = strays[1] < strays[0]
    return TaskVocabulary(sharing, True, tight, common) if shared else spelled


def _room(used: PrunedVocabulary, texts: Sequence[Sequence[int]], width: int, allowed: float) -> int:
    """Return how many rows of two bits a table has room for beside those of the tokens that `texts` (token ids) use."""
    groups = -(-width // GROUP_WEIGHTS)
    two, four = (-(-width * bits // 8) + groups + 4 for bits in (2, 4))  # with scales: a byte a group, four a row
    rows = len(used.kept)
    wide = len(frequent_rows(_counts(texts, rows), COMMON_WIDE_SHARE))
    return int((max(rows * four, WORDS_SHARE * allowed) - wide * four - (rows - wide) * two) // two)


def _counts(texts: Sequence[Sequence[int]], rows: int) -> np.ndarray:
    """i64[rows]: how often each id is in the texts."""
    return np.bincount(np.concatenate([np.asarray(text) for text in texts]), minlength=rows)


def divergence(wanted: np.ndarray, found: np.ndarray, classes: bool) -> float:
    """Mean Kullback-Leibler divergence in nats of logits [n, k] from those wanted; of other outputs the squared one."""
    if not classes:
        return float(np.square(wanted - found).sum(axis=1).mean())
    logs = [x - np.logaddexp.reduce(x, axis=1, keepdims=True) for x in (wanted.astype(np.float64), found)]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())


def small_vocabulary(source: bytes, train: Dataset) -> PrunedVocabulary:
    """Return the tokens that `train` uses often: those of `resplit_texts`."""
    return prune_vocabulary(source, train.texts, RESPLIT_COUNT)


def resplit_texts(
    small: PrunedVocabulary, learnt: Dataset, kept: np.ndarray, whole: Examples, length: int
) -> tuple[TokenLists, TokenLists]:
    """`learnt` in the tokens of a smaller vocabulary, as (ids, types) of the one of rows `kept`.

    With all of its own words known, a model would never meet what new texts are made of: unknown words in several
    tokens.

    whole   the same texts in the tokens of the checkpoint's vocabulary
    """
    encoded = encode(learnt, small.tokenizer_json, length)
    place = np.searchsorted(kept, small.kept)
    known = (place < len(kept)) & (kept[np.minimum(place, len(kept) - 1)] == small.kept)
    ids = TokenLists(
        place[row] if known[row].all() else np.searchsorted(kept, original)
        for row, original in zip(encoded.ids, whole.ids, strict=True)
    )
    types = TokenLists(
        types if len(types) == length else original
        for types, length, original in zip(encoded.types, ids.lengths, whole.types, strict=True)
    )
    return ids, types


def stored_embeddings(
    words: np.ndarray, bits: int, texts: Sequence[Sequence[int]], wide_share: float | None
) -> build.EmbeddingParts:
    """The embedding table f32[V, E] in `bits`; or in two, and in four those that are `wide_share` of the words of
    `texts`.

    texts   token ids
    """
    if wide_share is not None:
        return "s2", quantize_mixed(words, frequent_rows(_counts(texts, len(words)), wide_share))
    if bits == 4:
        parts = dict(zip(("q4", "group_scale", "scale"), quantize_rows4(words, MAX_ROW_GROUP_SCALE), strict=True))
    else:
        parts = dict(zip(("q", "scale"), quantize_rows(words), strict=True))
    return ("s4" if bits == 4 else "s8"), {f"embeddings.word.{part}": array for part, array in parts.items()}
