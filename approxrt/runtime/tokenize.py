"""Text to token ids: the artifact's tokenizer, with one truncation policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from approxrt.errors import ArtifactError, InputError, TextTooLongError, UnsupportedTaskError

Text = str | tuple[str, str]
Texts = Text | Sequence[Text]


@dataclass(frozen=True)
class Encoded:
    """ids and token types a text, and which texts were cut to the limit."""

    ids: list[list[int]]
    type_ids: list[list[int]]
    truncated: list[bool]


def is_single(texts: Texts) -> bool:
    """Whether a call's argument is one text (or one pair) rather than a list of them."""
    return isinstance(texts, str) or (
        isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(part, str) for part in texts)
    )


def load_tokenizer(path: Path, vocab_size: int) -> Any:
    """The `tokenizers.Tokenizer` of an artifact, without padding and truncation. Raises ArtifactError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise ArtifactError(path.parent, [f"tokenizer.json cannot be used: {error}"]) from None
    # tokenizer.json may carry a padding and a truncation of its training days; ours is the only one.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if tokenizer.get_vocab_size(with_added_tokens=True) > vocab_size:
        # Tokens may share rows (`approxrt.approx.synonyms`): what counts is the highest id.
        rows = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        if rows > vocab_size:
            raise ArtifactError(
                path.parent, [f"tokenizer.json has ids up to {rows - 1}, the embedding table {vocab_size} rows"]
            )
    return tokenizer


class TextEncoder:
    """Wraps a `tokenizers.Tokenizer`. `max_length` counts special tokens; pairs are cut longest first."""

    def __init__(self, path: Path, max_length: int, inputs: str, vocab_size: int) -> None:
        self._tokenizer = load_tokenizer(path, vocab_size)
        self.max_length = max_length
        self.inputs = inputs
        self._tokenizer.enable_truncation(self.max_length, strategy="longest_first")
        self._specials = {
            False: self._tokenizer.num_special_tokens_to_add(False),
            True: self._tokenizer.num_special_tokens_to_add(True),
        }

    def encode(self, texts: Texts, truncate: bool = True) -> Encoded:
        """Encode one text or many; an error names the text's index, the limit and the mend."""
        items = self._checked(texts)
        # Nothing is set on the tokenizer here: other threads may be encoding with it.
        try:
            encodings = self._tokenizer.encode_batch(items)
        except TypeError:  # the library's word for a str that is not Unicode
            raise InputError(_surrogates(items)) from None
        truncated = [bool(e.overflowing) for e in encodings]
        if not truncate and any(truncated):
            i = truncated.index(True)
            raise TextTooLongError(
                f"text {i} has {self._count(items[i])} tokens, the limit is {self.max_length}: "
                "shorten it or call with truncate=True"
            )
        for i, e in enumerate(encodings):
            if not e.ids:
                raise InputError(f"text {i} gives no tokens: {items[i]!r}; give some text")
        return Encoded([e.ids for e in encodings], [e.type_ids for e in encodings], truncated)

    def _count(self, text: Text) -> int:
        """Tokens of a text that is over the limit, by a tokenizer that does not cut."""
        whole = type(self._tokenizer).from_str(self._tokenizer.to_str())
        whole.no_truncation()
        return len(whole.encode_batch([text])[0].ids)

    def _checked(self, texts: Texts) -> list[Text]:
        if is_single(texts):
            texts = [texts]  # type: ignore[list-item]
        if isinstance(texts, (bytes, dict)) or not isinstance(texts, Sequence):
            raise InputError(f"texts must be a str, a (str, str) pair or a list of either, got {type(texts).__name__}")
        if not texts:
            raise InputError("the batch is empty: give at least one text")
        items: list[Text] = []
        for i, text in enumerate(texts):
            if isinstance(text, str):
                if self.inputs == "pair":
                    raise UnsupportedTaskError(f"text {i} is one text; this model takes pairs: give (text, text_pair)")
                items.append(text)
            elif isinstance(text, (tuple, list)) and len(text) == 2 and all(isinstance(part, str) for part in text):
                if self.inputs == "single":
                    raise UnsupportedTaskError(f"text {i} is a pair; this model takes single texts: give a str")
                items.append((text[0], text[1]))
            else:
                raise InputError(f"text {i} must be a str or a pair of str, got {type(text).__name__}: {text!r:.80}")
            if self._specials[not isinstance(text, str)] >= self.max_length:
                raise InputError(f"text {i}: the limit of {self.max_length} tokens leaves no room beside the specials")
        return items


def _surrogates(items: list[Text]) -> str:
    """Which text cannot be encoded as UTF-8."""
    for i, item in enumerate(items):
        for part in (item,) if isinstance(item, str) else item:
            try:
                part.encode("utf-8")
            except UnicodeEncodeError as error:
                return f"text {i} is not Unicode: character {error.start} is half of a surrogate pair"
    return "the tokenizer refuses the texts"
