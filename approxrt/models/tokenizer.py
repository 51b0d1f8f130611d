"""Read a checkpoint's tokenizer as the content of a `tokenizers` file that gives transformers' own ids.

transformers does not take tokenizer.json at its word: tokenizer_config.json, special_tokens_map.json and the
tokenizer's class may change case, accents, special tokens, the template around a text and the side that is cut. So the
tokenizer is built by transformers and what it became is written down. `check_ids` compares the two on hard strings.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from approxrt.artifact.files import parse_json, read_bounded
from approxrt.artifact.layout import unreadable
from approxrt.artifact.tokenizer import is_panic
from approxrt.errors import CheckpointError, CheckpointWarning, MissingDependencyError
from approxrt.models.classifier import quiet
from approxrt.models.hard_strings import HARD_PAIRS, HARD_TEXTS

TOKENIZER = "tokenizer.json"
# What a tokenizer can be built from. Without any of them transformers builds an empty vocabulary and says nothing.
FILES = (TOKENIZER, "vocab.txt", "vocab.json", "*.model", "*.bpe.codes")
_CHECKED_LENGTH = 24  # tokens that the comparison of cut texts cuts to
_TYPES = "token_type_ids"


@dataclass(frozen=True)
class CheckpointTokenizer:
    """A tokenizer as transformers runs it.

    json        content of a `tokenizers` file; `truncation` is there only if texts lose their beginning
    max_length  tokens that transformers cuts a text to, specials included; None for no limit
    original    the transformers tokenizer that it was read from
    typed       whether the model is given token types; all of them are 0 otherwise
    """

    json: bytes
    max_length: int | None
    original: Any
    typed: bool

    def highest_pair_type(self) -> int:
        """The highest token type in a pair, 0 for a model that is given none."""
        return max(self.original("a", "b")[_TYPES]) if self.typed else 0

    def check_rows(self, rows: int) -> None:
        """Compare ids with the `rows` of the embedding table.

        Raises CheckpointError naming tokens of the vocabulary, or of those around every text, that have none. Added
        tokens may lack a row: transformers runs such a checkpoint as long as no text has them, so a CheckpointWarning
        names them, and texts with them are refused.
        """
        backend = self.original.backend_tokenizer
        around = [(i, backend.id_to_token(i)) for i in sorted({*self.original("")["input_ids"]}) if i >= rows]
        if around:
            raise CheckpointError(
                f"the tokenizer puts {_named(around)} around every text, and the embedding table has {rows} rows: name "
                "tokens that the model knows in tokenizer_config.json, or resize_token_embeddings and train"
            )
        if len(self.original) <= rows and max(backend.get_added_tokens_decoder(), default=0) < rows:
            vocabulary = backend.get_vocab_size(with_added_tokens=False)
            if vocabulary <= rows and backend.id_to_token(rows) is None:
                return
        beyond = {token: i for token, i in backend.get_vocab(with_added_tokens=True).items() if i >= rows}
        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        lost = sorted((i, token) for token, i in beyond.items() if token not in added)
        if lost:
            raise CheckpointError(
                f"the tokenizer has {len(lost)} tokens beyond the embedding table's {rows} rows: "
                f"{_named(lost)}; is it another model's? Give the tokenizer that the model was trained with, or "
                "resize_token_embeddings and train"
            )
        if beyond:
            warnings.warn(
                f"the embedding table has {rows} rows and none for the added tokens "
                f"{_named(sorted((i, token) for token, i in beyond.items()))}: texts with them will be refused",
                CheckpointWarning,
                stacklevel=3,
            )

    def check_ids(self) -> None:
        """Raise CheckpointError unless both give the same ids and token types for a built-in set of hard strings."""
        from tokenizers import Tokenizer

        ours = Tokenizer.from_str(self.json.decode("utf-8"))
        wrong = [_shown(text) for text, same in _compare(ours, self.original, self.typed) if not same]
        if wrong:
            raise CheckpointError(
                f"the tokenizer gives other ids than transformers' {type(self.original).__name__} for {len(wrong)} of "
                f"{2 * len(HARD_TEXTS) + 2 * len(HARD_PAIRS)} test strings, {', '.join(wrong[:3])} among them. It uses "
                "something that a tokenizer.json cannot say: save it with save_pretrained as a fast tokenizer"
            )


def read_tokenizer(folder: Path) -> bytes:
    """The content of a `tokenizers` file for the checkpoint in `folder`; see `load_tokenizer`."""
    return load_tokenizer(folder).json


def load_tokenizer(folder: Path, lower_case: bool = False, typed: bool = True) -> CheckpointTokenizer:
    """Build the tokenizer of `folder` with transformers, and write down what it became.

    Truncation and padding that a file carries are removed: they belong to whoever calls the tokenizer (MiniLM's
    file pads every text to 128 tokens). `lower_case` is sentence-transformers' do_lower_case; a model that is not
    `typed` has no token types.

    Raises CheckpointError naming the file, MissingDependencyError without transformers.
    """
    _check_files(folder)
    original = _original(folder)
    backend = getattr(original, "backend_tokenizer", None)
    if backend is None:
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: {type(original).__name__} is no fast tokenizer, which an artifact needs; "
            f"convert it with transformers' save_pretrained to a folder with {TOKENIZER}"
        )
    if getattr(original, "split_special_tokens", False):
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: split_special_tokens=true in tokenizer_config.json is not supported: a "
            "tokenizer.json cannot say it; set it to false if special tokens in texts are to be read as such"
        )
    data = json.loads(backend.to_str())
    data["padding"] = None
    # The length is the caller's in each call; only the side is the tokenizer's own.
    left = original.truncation_side == "left"
    data["truncation"] = _LEFT if left else None
    if lower_case and not _lowers(data["normalizer"]):
        data["normalizer"] = _joined({"type": "Lowercase"}, data["normalizer"])
    typed = typed and _TYPES in original.model_input_names
    if not typed:
        data["post_processor"] = _without_types(data["post_processor"])
    text = json.dumps(data, ensure_ascii=False)
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(
            f"checkpoint {str(folder)!r}: its tokenizer cannot be written as one file: {error}"
        ) from error
    limit = original.model_max_length
    # transformers writes 1e30 for "no limit"; what is no number of tokens at all says as little.
    known = type(limit) in (int, float) and 1 <= limit < 1 << 20 and limit == int(limit)
    if not known:
        original.model_max_length = 1 << 30
    if lower_case:
        original.backend_tokenizer.normalizer = Tokenizer.from_str(text).normalizer
    read = CheckpointTokenizer(text.encode("utf-8"), int(limit) if known else None, original, typed)
    read.check_ids()
    return read


_LEFT = {"direction": "Left", "max_length": 512, "strategy": "LongestFirst", "stride": 0}


def _check_files(folder: Path) -> None:
    """Say which file is missing or broken before transformers guesses what to do without it."""
    if not any(any(folder.glob(pattern)) for pattern in FILES):
        raise CheckpointError(f"checkpoint {str(folder)!r} has no tokenizer: one of {', '.join(FILES)} is needed")
    path = folder / TOKENIZER
    if not path.exists():
        return
    try:
        raw = read_bounded(path)
        data = parse_json(raw)
    except OSError as error:
        raise CheckpointError(unreadable(str(path), error)) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise CheckpointError(f"{path} is not a tokenizers file: it has no object `model`")
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_buffer(raw)
    except BaseException as error:  # tokenizers raises plain Exception, and panics
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise CheckpointError(f"{path} is not a tokenizer that `tokenizers` can load: {error}") from error


def _original(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise MissingDependencyError("transformers", "compress", f"reading the tokenizer of {str(folder)!r}") from None
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(str(folder), use_fast=True, local_files_only=True)
    except Exception as error:  # of many kinds, depending on what a file lacks
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"transformers cannot build the tokenizer of {str(folder)!r}: {reason}") from error


def _lowers(normalizer: dict[str, Any] | None) -> bool:
    """Return whether texts come out in lower case already, judged as sentence-transformers does."""
    if normalizer is None:
        return False
    if normalizer["type"] == "Sequence":
        return any(_lowers(part) for part in normalizer["normalizers"])
    return normalizer["type"] == "Lowercase" or bool(normalizer.get("lowercase"))


def _joined(first: dict[str, Any], then: dict[str, Any] | None) -> dict[str, Any]:
    rest = [] if then is None else then["normalizers"] if then["type"] == "Sequence" else [then]
    return {"type": "Sequence", "normalizers": [first, *rest]}


def _without_types(processor: dict[str, Any] | None) -> dict[str, Any]:
    """The same template with token type 0 throughout: what a model sees that is not given token types."""
    sequence = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    if processor is None:
        return {"type": "TemplateProcessing", "single": sequence[:1], "pair": sequence, "special_tokens": {}}
    kind = processor["type"]
    if kind == "Sequence":
        return {**processor, "processors": [_without_types(part) for part in processor["processors"]]}
    if kind == "ByteLevel":  # changes offsets alone, and leaves the second text with type 1
        return {"type": "Sequence", "processors": [processor, _without_types(None)]}
    if kind == "BertProcessing":
        (cls, cls_id), (sep, sep_id) = processor["cls"], processor["sep"]
        ends = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ((cls, cls_id), (sep, sep_id))}
        begin, end = ({"SpecialToken": {"id": name, "type_id": 0}} for name in (cls, sep))
        single = [begin, sequence[0], end]
        return {"type": "TemplateProcessing", "single": single, "pair": [*single, sequence[1], end],
                "special_tokens": ends}  # fmt: skip
    if kind != "TemplateProcessing":
        return processor  # gives type 0 throughout
    zeroed = {
        name: [{part: {**value, "type_id": 0} for part, value in piece.items()} for piece in processor[name]]
        for name in ("single", "pair")
    }
    return {**processor, **zeroed}


def _compare(ours: Any, original: Any, typed: bool) -> Iterator[tuple[Any, bool]]:
    """Return (text or pair, whether ids and types agree), whole and cut."""
    direction = (ours.truncation or {}).get("direction", "right")
    for length in (None, _CHECKED_LENGTH):
        if length is None:
            ours.no_truncation()
        else:
            ours.enable_truncation(length, strategy="longest_first", direction=direction)
        options = {"truncation": length is not None, "max_length": length, "verbose": False}
        for item in (*HARD_TEXTS, *HARD_PAIRS):
            pair = item if isinstance(item, tuple) else (item,)
            mine = ours.encode(*pair)
            theirs = original(*pair, **options)
            types = theirs[_TYPES] if typed else [0] * len(mine.ids)
            yield item, mine.ids == theirs["input_ids"] and mine.type_ids == types


def _named(tokens: list[tuple[int, str]], limit: int = 8) -> str:
    more = f" and {len(tokens) - limit} more" if len(tokens) > limit else ""
    return ", ".join(f"{token!r} (id {i})" for i, token in tokens[:limit]) + more


def _shown(item: Any) -> str:
    return ascii(item) if len(ascii(item)) < 60 else ascii(item)[:57] + "..."
