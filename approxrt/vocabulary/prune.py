"""Fewer rows in the embedding tables: a vocabulary without the tokens that a task does not use, and fewer positions.

The table of word embeddings is half of MiniLM: 30,522 rows of 384, of which
SST-2 needs 13,486. A pruned vocabulary keeps special and added tokens, single
characters and the tokens that given texts use; the tokenizer then splits other
words into shorter tokens, so no word is lost (`subwords` says why). On texts
whose tokens are all kept the model's input, and with it every logit, stays the
same bit for bit.

    pruned = prune_vocabulary(checkpoint.tokenizer_json, train_texts)
    spec, tensors = apply_vocabulary(spec, tensors, pruned)

and the artifact is written with `pruned.tokenizer_json`.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from approxrt.artifact.files import parse_json
from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.errors import CheckpointError, InputError, UnsupportedModelError
from approxrt.vocabulary.subwords import close_bpe, close_wordpiece, greedy_prefix

_SUPPORTED = "supported: WordPiece and byte-level BPE"

# Texts that are tokenised in one call: enough to keep all cores busy, few enough to hold their encodings.
_CHUNK = 2048


@dataclass(frozen=True)
class PrunedVocabulary:
    """A smaller tokenizer and the rows that it needs.

    tokenizer_json  content of a `tokenizers` file, compact; its ids are 0..len(kept)-1
    kept            i64[new vocab_size], ascending: the old id of each new id
    """

    tokenizer_json: bytes
    kept: np.ndarray


def prune_vocabulary(
    tokenizer_json: bytes, texts: Iterable[str | tuple[str, str]], min_count: int = 1
) -> PrunedVocabulary:
    """The vocabulary less the tokens that `texts` use fewer than `min_count` times and nothing else needs.

    Kept are special and added tokens, the unknown token, single characters (in
    WordPiece both `x` and `##x`, in BPE the bytes), the tokens of `texts`, and
    what `approxrt.vocabulary.subwords` adds so that

    - a text whose tokens are all kept is tokenised as before; with min_count=1
      these are all of `texts`, also their words that are unknown;
    - a text without unknown words has none afterwards, and its tokens spell the same.

    Ids are renumbered in the old order. Nothing in the file is executed.

    Raises InputError for no texts, texts that are no strings and a min_count
    below 1; CheckpointError for a file that is damaged or contradicts itself;
    UnsupportedModelError for models other than WordPiece and byte-level BPE.
    """
    if isinstance(min_count, bool) or not isinstance(min_count, int) or min_count < 1:
        raise InputError(
            f"min_count is {min_count!r}; it must be an integer of at least 1 (1 keeps every token that the texts use)"
        )
    data, tokenizer = parse_tokenizer(tokenizer_json)
    kind = _supported_kind(data, tokenizer)
    ids = token_ids(data, tokenizer)
    named = named_ids(data, set(ids.values()))
    unk = tokenizer.model.unk_token
    vocab: dict[str, int] = data["model"]["vocab"]
    counts = count_tokens(tokenizer, texts, vocab, unk if kind == "WordPiece" else None)
    base = {token for token, i in ids.items() if i in named or token == unk}
    base |= {token for token, count in counts.items() if count >= min_count}
    if kind == "WordPiece":
        keep = close_wordpiece(vocab, tokenizer.model.continuing_subword_prefix, base)
    else:
        keep = close_bpe(_merges(data), base | _byte_alphabet().intersection(vocab))
    old = sorted(ids[token] for token in keep)
    new = {i: n for n, i in enumerate(old)}
    renumber_ids(data, keep, new)
    pruned = dump_tokenizer(data)
    if parse_tokenizer(pruned)[1].get_vocab(with_added_tokens=True) != {token: new[ids[token]] for token in keep}:
        raise CheckpointError("tokenizer.json: its tokens cannot be renumbered; the tokenizers library gives other ids")
    return PrunedVocabulary(pruned, np.array(old, np.int64))


def apply_vocabulary(
    spec: ModelSpec, tensors: Mapping[str, np.ndarray], vocabulary: PrunedVocabulary
) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (spec, tensors) with the kept rows of the word embeddings, of any `embedding_kind` but s2.

    `vocab_size` and `pad_token_id` follow; rows are copied bit for bit, all
    other tensors are the same arrays. Raises InputError when the vocabulary is
    not of this model: a row past the table, or no row for the padding token.
    """
    kept = vocabulary.kept
    if spec.embedding_kind == "s2":
        raise InputError(
            "the vocabulary of an embedding table of kind s2 cannot be pruned: prune it before it is quantised"
        )
    if not len(kept) or kept[0] < 0 or kept[-1] >= spec.vocab_size:
        span = f"rows {kept[0]} to {kept[-1]}" if len(kept) else "no rows"
        raise InputError(
            f"the vocabulary keeps {span}, the embedding table has {spec.vocab_size}: "
            "prune the tokenizer that belongs to this model"
        )
    pad = int(np.searchsorted(kept, spec.pad_token_id))
    if pad == len(kept) or kept[pad] != spec.pad_token_id:
        raise InputError(
            f"pad_token_id {spec.pad_token_id} is not among the {len(kept)} rows kept: "
            "make the padding token a special token of the tokenizer"
        )
    out = dict(tensors)
    for name, _, _ in spec.dense_tensors():
        if name.startswith("embeddings.word."):
            out[name] = tensors[name][kept]
    return dataclasses.replace(spec, vocab_size=len(kept), pad_token_id=pad), out


def trim_positions(
    spec: ModelSpec, tensors: Mapping[str, np.ndarray], max_length: int
) -> tuple[ModelSpec, dict[str, np.ndarray]]:
    """Return (spec, tensors) with the first `max_length` rows of the position table.

    `max_length` in tokens, specials included, becomes `max_positions` and the
    most that the spec's `max_length` can be: longer texts are cut or refused.
    Shorter texts get the same answer bit for bit. Raises InputError when it is
    not between 1 and `spec.max_positions`.
    """
    rows = spec.max_positions
    if isinstance(max_length, bool) or not isinstance(max_length, int) or not 1 <= max_length <= rows:
        raise InputError(
            f"max_length is {max_length!r}; it must be an integer between 1 and max_positions of the model, {rows}"
        )
    names = [name for name in tensors if name.startswith("embeddings.position.")]
    out = {**tensors, **{name: np.ascontiguousarray(tensors[name][:max_length]) for name in names}}
    return dataclasses.replace(spec, max_positions=max_length, max_length=min(spec.max_length, max_length)), out


def compact_tokenizer(tokenizer_json: bytes) -> bytes:
    """The same JSON without whitespace and with characters for their escapes. Raises CheckpointError for no JSON."""
    return dump_tokenizer(_parse(tokenizer_json))


# -- reading --------------------------------------------------------------------


def _parse(tokenizer_json: bytes) -> Any:
    try:
        return parse_json(tokenizer_json)
    except ValueError as error:
        raise CheckpointError(f"tokenizer.json is not valid JSON: {error}") from error


def dump_tokenizer(data: Any) -> bytes:
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
    except ValueError as error:  # an infinite number, a lone surrogate
        raise CheckpointError(f"tokenizer.json holds what JSON in UTF-8 cannot: {error}") from error


def parse_tokenizer(tokenizer_json: bytes) -> tuple[dict[str, Any], Any]:
    """Return (the JSON, a `tokenizers.Tokenizer` that neither pads nor truncates)."""
    from tokenizers import Tokenizer

    data = _parse(tokenizer_json)
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise CheckpointError("tokenizer.json is not a tokenizers file: it has no object `model`")
    # Before the library sees them: some of these values make it panic, which no `except Exception` catches.
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if "merges" in data["model"] else ():
        value = data["model"].get(option)
        if value:
            raise UnsupportedModelError(
                f"the vocabulary of a BPE tokenizer with {option} {value!r:.80} cannot be pruned; "
                f"{_SUPPORTED} without it"
            )
    try:
        tokenizer = Tokenizer.from_str(tokenizer_json.decode("utf-8"))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"tokenizer.json is not a tokenizer that `tokenizers` can load: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return data, tokenizer


def _supported_kind(data: dict[str, Any], tokenizer: Any) -> str:
    # Older files do not name the model's type; the library knows it by its fields.
    kind = type(tokenizer.model).__name__
    if kind == "WordPiece":
        return kind
    if kind != "BPE":
        raise UnsupportedModelError(f"the vocabulary of a {kind} tokenizer cannot be pruned; {_SUPPORTED}")
    steps = [data.get("pre_tokenizer")]
    types = set()
    while steps:
        step = steps.pop() or {}
        types.add(step.get("type"))
        steps += step.get("pretokenizers", [])
    if "ByteLevel" not in types:
        raise UnsupportedModelError(
            f"the vocabulary of a BPE tokenizer without the pre-tokenizer ByteLevel cannot be pruned; {_SUPPORTED}"
        )
    return kind


def token_ids(data: dict[str, Any], tokenizer: Any) -> dict[str, int]:
    """Every token's id, added tokens' too. The file and the library have to agree on them."""
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    written = [*data["model"]["vocab"].items()]
    written += [(token["content"], token["id"]) for token in data.get("added_tokens") or ()]
    for token, i in written:
        if ids.get(token) != i:
            raise CheckpointError(
                f"tokenizer.json: token {token!r:.80} has id {i}, but the tokenizers library gives it {ids.get(token)}"
            )
    tokens: dict[int, str] = {}
    for token, i in ids.items():
        if tokens.setdefault(i, token) != token:
            raise CheckpointError(f"tokenizer.json: tokens {tokens[i]!r:.80} and {token!r:.80} share the id {i}")
    return ids


def _id_slots(data: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Return (where, container, key) of every id outside of the model: `container[key]` is the id."""
    for i, token in enumerate(data.get("added_tokens") or ()):
        yield f"added_tokens[{i}].id", token, "id"
    if data.get("padding") is not None:
        yield "padding.pad_id", data["padding"], "pad_id"
    processors: list[Any] = [data["post_processor"]] if data.get("post_processor") is not None else []
    while processors:
        processor = processors.pop()
        kind = processor.get("type")
        if kind == "Sequence":
            processors += processor["processors"]
        elif kind in ("BertProcessing", "RobertaProcessing"):
            yield "post_processor.sep", processor["sep"], 1
            yield "post_processor.cls", processor["cls"], 1
        elif kind == "TemplateProcessing":
            for name, special in processor["special_tokens"].items():
                for i in range(len(special["ids"])):
                    yield f"post_processor.special_tokens[{name!r:.80}].ids[{i}]", special["ids"], i
        elif kind != "ByteLevel":
            raise UnsupportedModelError(
                f"post_processor {kind!r:.80} is not supported; supported: "
                "TemplateProcessing, BertProcessing, RobertaProcessing, ByteLevel, Sequence"
            )


def named_ids(data: dict[str, Any], known: set[int]) -> set[int]:
    """The ids that the file names outside of the model. They have to be tokens'."""
    named: set[int] = set()
    try:
        for where, container, key in _id_slots(data):
            if container[key] not in known:
                raise CheckpointError(f"tokenizer.json: {where} is {container[key]!r:.80}, which no token has")
            named.add(container[key])
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"tokenizer.json: added_tokens, padding or post_processor is malformed: {error}"
        ) from error
    return named


def _merges(data: dict[str, Any]) -> list[tuple[str, str]]:
    """BPE's merges by rank: older files write "left right", newer ones [left, right]."""
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in data["model"]["merges"]]
    for pair in pairs:
        if len(pair) != 2:
            raise CheckpointError(f"tokenizer.json: merge {' '.join(pair)!r:.80} is not of two tokens")
    return pairs


def _byte_alphabet() -> set[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())


# -- counting -------------------------------------------------------------------


def count_tokens(tokenizer: Any, texts: Iterable[Any], vocab: Mapping[str, int], unk: str | None) -> Counter[str]:
    """Count how often each token is used. An unknown word uses the tokens that WordPiece finds before it gives up:
    without them it might find others, go on, and spell a word that was unknown to the model in training."""
    counts: Counter[str] = Counter()
    strings = _strings(texts)
    while chunk := list(islice(strings, _CHUNK)):
        try:
            encodings = tokenizer.encode_batch(chunk, add_special_tokens=False)
        except Exception as error:  # the library raises plain Exception; no unknown token, a lone surrogate
            raise InputError(f"the texts cannot be tokenised: {error}") from error
        for text, encoding in zip(chunk, encodings, strict=True):
            counts.update(encoding.tokens)
            if unk is not None and unk in encoding.tokens:
                for word in _unknown_words(tokenizer, text, encoding, unk):
                    counts.update(greedy_prefix(word, vocab, tokenizer.model.continuing_subword_prefix))
    return counts


def _strings(texts: Iterable[Any]) -> Iterator[str]:
    """The texts one by one, the parts of a pair apart: a tokenizer never looks across them."""
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise InputError(f"texts must be an iterable of str or (str, str) pairs, got {type(texts).__name__}")
    empty = True
    for i, text in enumerate(texts):
        parts = (text,) if isinstance(text, str) else text
        if not isinstance(parts, tuple | list) or (parts is text and len(parts) != 2):
            raise InputError(f"text {i} must be a str or a pair of str, got {type(text).__name__}: {text!r:.80}")
        for part in parts:
            if not isinstance(part, str):
                raise InputError(f"text {i} must be a str or a pair of str, got {type(part).__name__}: {part!r:.80}")
            yield part
        empty = False
    if empty:
        raise InputError("there are no texts: give those of the task, so that its tokens can be counted")


def _unknown_words(tokenizer: Any, text: str, encoding: Any, unk: str) -> Iterator[str]:
    """The words, normalised, that the encoding of `text` has unknown tokens for."""
    for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
        part = text[start:end]
        if token != unk or part.strip() == unk:  # a known token, or an unknown one that is written out
            continue
        if tokenizer.normalizer is not None:
            part = tokenizer.normalizer.normalize_str(part)
        words = [part]
        if tokenizer.pre_tokenizer is not None:
            words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(part)]
        # A word over the limit is unknown whatever the vocabulary.
        yield from (word for word in words if len(word) <= tokenizer.model.max_input_chars_per_word)


# -- writing --------------------------------------------------------------------


def renumber_ids(data: dict[str, Any], keep: set[str], new: Mapping[int, int]) -> None:
    """Put the new ids into every place of the file that holds one; `new` maps old to new."""
    model = data["model"]
    by_id = sorted(model["vocab"].items(), key=lambda item: item[1])
    model["vocab"] = {token: new[i] for token, i in by_id if token in keep}
    if "merges" in model:
        kept = [left + right in keep for left, right in _merges(data)]
        model["merges"] = [merge for merge, stays in zip(model["merges"], kept, strict=True) if stays]
    for _, container, key in _id_slots(data):
        container[key] = new[container[key]]
