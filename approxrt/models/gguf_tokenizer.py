"""The tokenizer of a .gguf file as a `tokenizers` one, from the file's own tokens and by llama.cpp's rules.

Two kinds are known: byte-level BPE (`tokenizer.ggml.model` "gpt2"), whose words `gguf_pretokenizers` cuts, and
SentencePiece's BPE ("llama"), which has scores instead of merges: of all pairs of neighbours that make a token, the one
of the best score is joined, the leftmost of equals. As a list of merges these are ranked by their product's score.

Nothing is believed: what has been built is run over the file's own tokens (`_check_words`, `_check_tokens`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Any

import numpy as np

from approxrt.errors import CheckpointError, UnsupportedModelError
from approxrt.models.gguf_eos import end_of_text, is_control_text
from approxrt.models.gguf_file import GgufFile, text
from approxrt.models.gguf_pretokenizers import NOT_EXPRESSIBLE, PRE_TOKENIZERS, PreTokenizer

_KEY = "tokenizer.ggml."
_SPACE = "▁"  # SentencePiece's
_SHOWN = 5
# Characters; runs of spaces have some hundred. Checking how a token is joined takes the square of its length.
MAX_TOKEN = 4096
MAX_SQUARES = 1 << 25
# Texts that the built tokenizer is tried on beside the file's own tokens.
_HARD = (
    "Hello", " one", "  two  three ", "a\nb\n\n1", "Ünïcode — 漢字🙂👩‍🔬", "it's 12345,67 <x>\t|", "ab" * 9, "▁ ▁", "",
)  # fmt: skip
_OTHER_MODELS = {
    "bert": "WordPiece", "t5": "SentencePiece's unigram model", "rwkv": "RWKV's", "plamo2": "PLaMo-2's",
    "gemma4": "BPE over characters", "hybriddna": "HybridDNA's", "whitespace": "words", "none": "none",
    "no_vocab": "none",
}  # fmt: skip


class _Type(IntEnum):
    NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


@dataclass(frozen=True)
class GgufTokenizer:
    """json      the content of tokenizer.json
    eos_token_ids  those that end a text
    specials  texts by name: "bos_token", "eos_token", ...
    template  the chat template, "" where the file has none
    """

    json: bytes
    eos_token_ids: tuple[int, ...]
    specials: dict[str, str]
    template: str


@dataclass(frozen=True)
class _Vocabulary:
    """The file's tokens, checked. `types` has llama.cpp's corrections: tokens that end a text are control tokens."""

    tokens: list[str]
    types: list[int]
    ids: dict[str, int]

    def of(self, *types: int) -> list[int]:
        return [i for i, kind in enumerate(self.types) if kind in types]


def read_gguf_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Build and check the tokenizer of `file`.

    Raises UnsupportedModelError for a kind of vocabulary or of word splitting that is not known, by name;
    CheckpointError for keys that are missing or contradict each other, and for a tokenizer whose results differ from
    what the file's own tokens ask for.
    """
    model = text(file.metadata, f"{_KEY}model", file.path)
    if model not in ("gpt2", "llama"):
        what = f" ({_OTHER_MODELS[model]})" if model in _OTHER_MODELS else ""
        raise UnsupportedModelError(
            f"{str(file.path)!r}: {_KEY}model is {model!r}{what}; supported: 'gpt2' (byte-level BPE), 'llama' "
            "(SentencePiece's BPE)"
        )
    pre = _pre_tokenizer(file) if model == "gpt2" else None
    vocabulary = _vocabulary(file)
    special = _special_ids(file, model, len(vocabulary.tokens))
    ends = end_of_text(vocabulary.ids, special)
    if not ends:
        raise CheckpointError(
            f"{str(file.path)!r}: {_KEY}eos_token_id is missing and no token has a known end's name, so a text "
            "would never end; add the key with gguf-new-metadata"
        )
    scores = _scores(file, len(vocabulary.tokens)) if model == "llama" else np.zeros(0)
    tokenizer = _bpe(file, vocabulary, pre) if pre else _sentencepiece(file, vocabulary, scores, special)
    _add_specials(tokenizer, vocabulary)
    _add_ends(file, tokenizer, vocabulary, special, bos=pre.bos if pre else True)
    if pre:
        _check_words(file, tokenizer, vocabulary)
    else:
        _check_tokens(file, tokenizer, vocabulary, scores)
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    template = file.metadata.get("tokenizer.chat_template")
    return GgufTokenizer(
        json=tokenizer.to_str().encode("utf-8"),
        eos_token_ids=ends,
        specials={name: vocabulary.tokens[special[key]] for key, name in names.items() if key in special},
        template=template if isinstance(template, str) else "",
    )


def _vocabulary(file: GgufFile) -> _Vocabulary:
    tokens = file.metadata.get(f"{_KEY}tokens")
    if not isinstance(tokens, list) or not tokens:
        raise CheckpointError(f"{str(file.path)!r}: the key {_KEY}tokens is missing or no list of strings")
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN:
        raise CheckpointError(
            f"{str(file.path)!r}: {_KEY}tokens has a token of {longest} characters; the limit is {MAX_TOKEN}"
        )
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens)]
    ids = {token: i for i, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = sorted({token for i, token in enumerate(tokens) if ids[token] != i})
        shown = ", ".join(map(repr, twice[:_SHOWN]))
        raise CheckpointError(f"{str(file.path)!r}: {_KEY}tokens has tokens that are there twice: {shown}")
    types = file.metadata.get(f"{_KEY}token_type")
    if types is None:
        types = np.full(len(tokens), _Type.NORMAL)
    if not isinstance(types, np.ndarray) or len(types) != len(tokens):
        raise CheckpointError(f"{str(file.path)!r}: {_KEY}token_type is no list of {len(tokens)} integers")
    corrected = [
        int(_Type.CONTROL) if is_control_text(token) and kind != _Type.CONTROL else kind
        for token, kind in zip(tokens, types.tolist(), strict=True)
    ]
    return _Vocabulary(tokens, corrected, ids)


def _special_ids(file: GgufFile, model: str, count: int) -> dict[str, int]:
    """Ids by the part of the key before _token_id. Those of SentencePiece have llama.cpp's usual values."""
    found = {"bos": 1, "eos": 2, "unknown": 0} if model == "llama" else {}
    found = {name: token for name, token in found.items() if token < count}
    for key, value in file.metadata.items():
        if not key.startswith(_KEY) or not key.endswith("_token_id"):
            continue
        name = key[len(_KEY) : -len("_token_id")]
        if type(value) is not int or not 0 <= value < count:
            # Converters write -1, as an unsigned number too, for a token that there is not.
            if value in (-1, (1 << 32) - 1):
                found.pop(name, None)
                continue
            raise CheckpointError(f"{str(file.path)!r}: {key} is {value!r}; the tokens have ids 0 to {count - 1}")
        found[name] = value
    return found


def _pre_tokenizer(file: GgufFile) -> PreTokenizer:
    name = file.metadata.get(f"{_KEY}pre")
    if name is None:
        raise CheckpointError(
            f"{str(file.path)!r}: the key {_KEY}pre is missing, so it is not known how texts are cut into words; "
            "convert the model again with a llama.cpp of after April 2024, or add the key with gguf-new-metadata "
            "--pre-tokenizer"
        )
    if isinstance(name, str) and name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    why = f": {NOT_EXPRESSIBLE[name]}" if isinstance(name, str) and name in NOT_EXPRESSIBLE else ""
    raise UnsupportedModelError(
        f"{str(file.path)!r}: {_KEY}pre {name!r} is not supported{why}; supported: {', '.join(sorted(PRE_TOKENIZERS))}"
    )


def _bpe(file: GgufFile, vocabulary: _Vocabulary, pre: PreTokenizer) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    lines = file.metadata.get(f"{_KEY}merges")
    if not isinstance(lines, list):
        raise CheckpointError(
            f"{str(file.path)!r}: the key {_KEY}merges is missing or no list of strings; a byte-level "
            "vocabulary has merges"
        )
    merges = []
    for i, line in enumerate(lines):
        at = line.find(" ", 1)
        pair = (line[:at], line[at + 1 :])
        if at < 0 or not all(part in vocabulary.ids for part in (*pair, "".join(pair))):
            raise CheckpointError(
                f"{str(file.path)!r}: entry {i} of {_KEY}merges is {line!r}, which does not make a token of two tokens"
            )
        merges.append(pair)
    if flag(file, "add_space_prefix", False):
        raise UnsupportedModelError(f"{str(file.path)!r}: {_KEY}add_space_prefix=true is not supported with 'gpt2'")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=pre.whole_words))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in pre.patterns]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _scores(file: GgufFile, count: int) -> np.ndarray:
    scores = file.metadata.get(f"{_KEY}scores")
    if not isinstance(scores, np.ndarray) or len(scores) != count or not np.isfinite(scores).all():
        raise CheckpointError(
            f"{str(file.path)!r}: {_KEY}scores is missing or no list of {count} numbers; SentencePiece's BPE joins "
            "pairs by their scores"
        )
    return scores.astype(np.float64)


def _sentencepiece(file: GgufFile, vocabulary: _Vocabulary, scores: np.ndarray, special: dict[str, int]) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    if flag(file, "remove_extra_whitespaces", False):
        raise UnsupportedModelError(f"{str(file.path)!r}: {_KEY}remove_extra_whitespaces=true is not supported")
    if sum(len(token) ** 2 for token in vocabulary.tokens) > MAX_SQUARES:
        raise CheckpointError(
            f"{str(file.path)!r}: {_KEY}tokens has too many long tokens: the squares of their lengths add up to over "
            f"{MAX_SQUARES}, which no vocabulary of words has"
        )
    joined = {vocabulary.tokens[i]: scores[i] for i in vocabulary.of(_Type.NORMAL, _Type.USER_DEFINED)}
    ranked = []
    for token, score in joined.items():
        for at in range(1, len(token)):
            left, right = token[:at], token[at:]
            if left in joined and right in joined:
                ranked.append((-score, vocabulary.ids[token], at, (left, right)))
    ranked.sort()
    whole = len(vocabulary.of(_Type.BYTE)) == 256
    unknown = special.get("unknown")
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary.ids,
            merges=[pair for *_, pair in ranked],
            byte_fallback=whole,
            fuse_unk=True,
            unk_token=None if unknown is None else vocabulary.tokens[unknown],
        )
    )
    prefix = flag(file, "add_space_prefix", True)
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces]) if prefix else spaces
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return tokenizer


def flag(file: GgufFile, name: str, usual: bool) -> bool:
    """A key of the tokenizer that is true or false. Raises CheckpointError for anything else."""
    value = file.metadata.get(f"{_KEY}{name}", usual)
    if not isinstance(value, bool):
        raise CheckpointError(f"{str(file.path)!r}: {_KEY}{name} is {value!r}; true or false is needed")
    return value


def _add_specials(tokenizer: Any, vocabulary: _Vocabulary) -> None:
    """Control tokens, which decoding leaves out, and user-defined ones, which it keeps: both are found in any text."""
    from tokenizers import AddedToken

    def tokens(*types: int) -> list[Any]:
        special = _Type.USER_DEFINED not in types
        return [AddedToken(vocabulary.tokens[i], normalized=False, special=special) for i in vocabulary.of(*types)]

    tokenizer.add_special_tokens(tokens(_Type.CONTROL, _Type.UNKNOWN))
    tokenizer.add_tokens(tokens(_Type.USER_DEFINED))


def _add_ends(file: GgufFile, tokenizer: Any, vocabulary: _Vocabulary, special: dict[str, int], bos: bool) -> None:
    """Return what is put around a prompt: `add_bos_token` and `add_eos_token`, else what is usual for the kind."""
    from tokenizers import processors

    around = []
    for name, usual in (("bos", bos), ("eos", False)):
        if not flag(file, f"add_{name}_token", usual):
            continue
        if name not in special:
            raise CheckpointError(
                f"{str(file.path)!r}: a prompt has a token at its {'start' if name == 'bos' else 'end'}, but "
                f"{_KEY}{name}_token_id is missing; add it, or {_KEY}add_{name}_token=false"
            )
        around.append((name, vocabulary.tokens[special[name]], special[name]))
    if flag(file, "add_sep_token", False):
        raise UnsupportedModelError(f"{str(file.path)!r}: {_KEY}add_sep_token=true is not supported")
    if around:
        start = [f"{name}:0" for name, _, _ in around if name == "bos"]
        end = [f"{name}:0" for name, _, _ in around if name == "eos"]
        single = [*start, "$A:0", *end]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single,
            pair=[*single, *(part.replace("$A", "$B").replace(":0", ":1") for part in single)],
            special_tokens=[{"id": name, "ids": [token], "tokens": [shown]} for name, shown, token in around],
        )


def _check_words(file: GgufFile, tokenizer: Any, vocabulary: _Vocabulary) -> None:
    """Every normal token's text must come back when it is tokenised, and every token must keep its id."""
    own = [vocabulary.tokens[i] for i in vocabulary.of(_Type.NORMAL)]
    texts = [tokenizer.decoder.decode([token]) for token in own]
    whole = [(token, words) for token, words in zip(own, texts, strict=True) if "\ufffd" not in words]
    whole += [(words, words) for words in _HARD if _alphabet() <= vocabulary.ids.keys()]
    encoded = tokenizer.encode_batch([words for _, words in whole], add_special_tokens=False)
    back = tokenizer.decode_batch([encoding.ids for encoding in encoded], skip_special_tokens=False)
    _report(file, [token for (token, words), found in zip(whole, back, strict=True) if words != found])
    _check_ids(file, tokenizer, vocabulary)


def _check_tokens(file: GgufFile, tokenizer: Any, vocabulary: _Vocabulary, scores: np.ndarray) -> None:
    """Texts must give the tokens that joining by scores gives."""
    joined = {vocabulary.tokens[i]: scores[i] for i in vocabulary.of(_Type.NORMAL, _Type.USER_DEFINED)}
    added = [vocabulary.tokens[i] for i in vocabulary.of(_Type.CONTROL, _Type.UNKNOWN, _Type.USER_DEFINED)]
    own = [vocabulary.tokens[i].replace(_SPACE, " ") for i in vocabulary.of(_Type.NORMAL)]
    texts = [words for words in (*own, *_HARD) if words and not any(token in words for token in added)]
    # The normaliser is the tokenizer's own: it is joining that is checked.
    prepared = [tokenizer.normalizer.normalize_str(words) for words in texts]
    wrong = []
    for words, encoding in zip(prepared, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        tokens = join_by_scores(words, joined)
        if all(token in joined for token in tokens) and tokens != encoding.tokens:
            wrong.append(words)
    _report(file, wrong)
    _check_ids(file, tokenizer, vocabulary)


def join_by_scores(words: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE as it is defined: the pair with the best score is joined, the leftmost of equals."""
    tokens = list(words)
    while True:
        pairs = [
            (-scores[left + right], at) for at, (left, right) in enumerate(pairwise(tokens)) if left + right in scores
        ]
        if not pairs:
            return tokens
        _, at = min(pairs)
        tokens[at : at + 2] = [tokens[at] + tokens[at + 1]]


def _check_ids(file: GgufFile, tokenizer: Any, vocabulary: _Vocabulary) -> None:
    ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
    _report(file, [token for token, i in ids.items() if vocabulary.ids.get(token) != i])


def _report(file: GgufFile, wrong: Sequence[str]) -> None:
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise CheckpointError(
            f"{str(file.path)!r}: the tokenizer cannot be built from the file's tokens: "
            f"{', '.join(repr(token) for token in wrong[:_SHOWN])}{more} are tokenised otherwise than the file asks for"
        )


def _alphabet() -> set[str]:
    from tokenizers import pre_tokenizers

    return set(pre_tokenizers.ByteLevel.alphabet())
