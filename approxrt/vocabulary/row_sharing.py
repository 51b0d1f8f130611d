"""A vocabulary that shares rows: tokens that a task hardly uses are read as the kept token that the model treats alike.

A vocabulary that is pruned to the tokens of the training texts spells all other words with smaller tokens, which a
fine-tuned model has hardly learnt to read: on SST-2's dev file a third of all texts change, and 1.8 % of the answers of
a model that is otherwise the same. Here every token keeps its name in the tokenizer, so texts are split into tokens as
ever, and the name stands for another token's row of the embedding table: `reused` for `recycled`, at the price of one
line of tokenizer.json. What is alike is for the model to say. It reads each token by itself, and the states in its
upper middle, where a task's meaning is made up but not yet its answer, are compared: they are better judges than the
embedding table (mean divergence of answers on unseen sentences of SST-2: 0.024 by small tokens, 0.025 by neighbours in
the table, 0.011 by neighbours in layer 4 of 6).

    features = token_states(TorchEncoder(spec, tensors), tokenizer_json)
    vocabulary = share_rows(tokenizer_json, train_texts, features)
    spec, tensors = apply_vocabulary(spec, tensors, vocabulary)

Only WordPiece can do so: in BPE a merge is of two ids, and ids that stand for several tokens would merge wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from approxrt.errors import CheckpointError, InputError, UnsupportedModelError
from approxrt.torch_models.encoder import TorchEncoder, make_batch
from approxrt.vocabulary.prune import (
    PrunedVocabulary,
    count_tokens,
    dump_tokenizer,
    named_ids,
    parse_tokenizer,
    renumber_ids,
    token_ids,
)

DEPTH = 2 / 3  # of the layers: whose states are compared
_BATCH = 1024
_BLOCK = 2048  # tokens whose neighbours are looked for in one go


def shares_rows(tokenizer_json: bytes) -> bool:
    """Tell whether a tokenizer's tokens can share rows: it is WordPiece and puts special tokens around a text."""
    tokenizer = parse_tokenizer(tokenizer_json)[1]
    return type(tokenizer.model).__name__ == "WordPiece" and tokenizer.num_special_tokens_to_add(False) > 0


def token_states(model: TorchEncoder, tokenizer_json: bytes) -> np.ndarray:
    """f32[V, hidden]: each token's state, of mean zero over tokens and length 1, where the model reads it by itself.

    Read in the model's own middle (`DEPTH`), between the tokens that the tokenizer puts around a text.
    """
    _, tokenizer = parse_tokenizer(tokenizer_json)
    frame = tokenizer.encode("")
    if not frame.special_tokens_mask or not all(frame.special_tokens_mask):
        raise UnsupportedModelError("the tokenizer puts no special tokens around a text: its tokens cannot be compared")
    first, last = frame.ids[0], frame.ids[-1]
    layer = max(0, round(DEPTH * len(model.spec.layers)) - 1)
    states = np.zeros((model.spec.vocab_size, model.spec.hidden_size), np.float32)
    training = model.training
    model.eval()
    with torch.inference_mode():
        for begin in range(0, len(states), _BATCH):
            ids = range(begin, min(begin + _BATCH, len(states)))
            batch = make_batch([[first, i, last] for i in ids], device=model.device)
            x, keys = model.embed(batch), model.keys(batch)
            for i in range(layer + 1):
                x = model.layer(i, x, keys)
            states[ids.start : ids.stop] = x[:, 1].float().cpu().numpy()
    model.train(training)
    states -= states.mean(axis=0)
    return states / np.maximum(np.linalg.norm(states, axis=1, keepdims=True), 1e-12)


def share_rows(
    tokenizer_json: bytes,
    texts: Iterable[str | tuple[str, str]],
    features: np.ndarray,
    min_count: int = 1,
    common: int = 0,
) -> PrunedVocabulary:
    """The vocabulary with rows for the tokens that `texts` use `min_count` times; all others stand for one of those.

    features   f32[V, d], rows of length 1 by the tokenizer's ids: the greatest inner product is the nearest
    common     so many of the other tokens keep rows, too: those with the lowest ids, since a vocabulary lists its words
               in the order of how common they are. Single characters, which have an order of their own, are no words,
               and names in brackets are placeholders

    Special and added tokens and the unknown token keep their rows, and nothing else is read as one of them. Kept rows
    are renumbered in the old order. Raises as `prune_vocabulary` does, and InputError where the texts use no token
    often enough or the features are not of this vocabulary.
    """
    if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 1:
        raise InputError(f"min_count is {min_count!r}; it must be an integer of at least 1")
    data, tokenizer = parse_tokenizer(tokenizer_json)
    kind = type(tokenizer.model).__name__
    if kind != "WordPiece":
        raise UnsupportedModelError(f"the tokens of a {kind} tokenizer cannot share rows; WordPiece's can")
    ids = token_ids(data, tokenizer)
    unk = tokenizer.model.unk_token
    special = named_ids(data, set(ids.values())) | ({ids[unk]} if unk in ids else set())
    counts = count_tokens(tokenizer, texts, data["model"]["vocab"], None)
    used = np.array(sorted({ids[token] for token, count in counts.items() if count >= min_count} - special), np.int64)
    if not len(used):
        raise InputError(f"the texts use no token {min_count} times: give more texts or a smaller min_count")
    if features.ndim != 2 or len(features) <= max(ids.values()):
        raise InputError(
            f"features have shape {features.shape}; the tokenizer needs a row for each of {max(ids.values()) + 1} ids"
        )
    if common:
        more = [i for token, i in ids.items() if _is_word(token, data["model"].get("continuing_subword_prefix", "##"))]
        used = np.union1d(used, np.sort(np.setdiff1d(more, [*used, *special]))[:common])
    kept = np.union1d(used, np.array(sorted(special), np.int64))
    row = {old: new for new, old in enumerate(kept.tolist())}
    others = np.array(sorted(set(ids.values()) - set(row)), np.int64)
    for begin in range(0, len(others), _BLOCK):
        block = others[begin : begin + _BLOCK]
        nearest = used[np.argmax(features[block] @ features[used].T, axis=1)]
        row.update((old, row[new]) for old, new in zip(block.tolist(), nearest.tolist(), strict=True))
    renumber_ids(data, set(ids), row)
    shared = dump_tokenizer(data)
    if parse_tokenizer(shared)[1].get_vocab(with_added_tokens=True) != {token: row[i] for token, i in ids.items()}:
        raise CheckpointError("tokenizer.json: its tokens cannot be renumbered; the tokenizers library gives other ids")
    return PrunedVocabulary(shared, kept)


def _is_word(token: str, prefix: str) -> bool:
    return len(token.removeprefix(prefix)) > 1 and not (token.startswith("[") and token.endswith("]"))
