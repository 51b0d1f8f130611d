"""Text to token ids: the artifact's tokenizer, with one truncation policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from approxrt.artifact.layout import TOKENIZER
from approxrt.artifact.reader import Artifact
from approxrt.artifact.tokenizer import parse_tokenizer
from approxrt.errors import ArtifactError, InputError, TextTooLongError, UnsupportedTaskError
from approxrt.runtime.failures import panics_as_errors
from approxrt.runtime.inputs import padding_in_texts
from approxrt.runtime.long_text import CHARACTERS_A_TOKEN, LongTextCutter

COUNTED_CHARACTERS = 100_000  # of a text whose tokens are counted to say how many are too many

Text = str | tuple[str, str]
Texts = Text | Sequence[Text]


@dataclass(frozen=True)
class Encoded:
    """ids and token types a text, and which texts were cut to the limit."""

    ids: list[list[int]]
    type_ids: list[list[int]]
    truncated: list[bool]


def is_single(texts: Texts) -> bool:
    """Tell whether a call's argument is one text (or one pair) rather than a list of them."""
    return isinstance(texts, str) or (
        isinstance(texts, tuple) and len(texts) == 2 and all(isinstance(part, str) for part in texts)
    )


def with_prompt(texts: Texts, prompt: str) -> Texts:
    """The texts with `prompt` before each; of a pair, before its first text."""
    if not prompt:
        return texts
    if isinstance(texts, str):
        return prompt + texts
    if is_single(texts):
        return (prompt + texts[0], texts[1])  # type: ignore[operator]
    if isinstance(texts, bytes | dict) or not isinstance(texts, Sequence):
        return texts  # refused by name where texts are checked
    return [with_prompt(text, prompt) if isinstance(text, str | tuple) else text for text in texts]  # type: ignore[misc]


def load_tokenizer(artifact: Artifact) -> Any:
    """The `tokenizers.Tokenizer` of an artifact, without padding; truncation is the file's.

    Raises ArtifactError, for ids beyond the embedding table, too. Added tokens may lack a row, as in checkpoints that
    transformers runs: whoever encodes refuses texts that have them.
    """
    try:
        return parse_tokenizer(artifact.tokenizer_json, artifact.any_spec.vocab_size)
    except ValueError as error:
        raise ArtifactError(artifact.path, [f"{TOKENIZER} {error}"]) from None


def truncation_side(tokenizer: Any) -> str:
    """ "left" if tokenizer.json says that texts over a limit lose their beginning, else "right"."""
    return "left" if str((tokenizer.truncation or {}).get("direction")).lower() == "left" else "right"


def cut_to(tokenizer: Any, max_length: int) -> None:
    """Make a `tokenizers.Tokenizer` cut texts to `max_length` tokens at the side that it names itself."""
    tokenizer.enable_truncation(max_length, strategy="longest_first", direction=truncation_side(tokenizer))


class TextEncoder:
    """Turns texts into token ids with an encoder artifact's tokenizer, as its spec says.

    Texts over the limit of tokens, which counts special ones, lose the end that tokenizer.json names; pairs are cut
    longest first.
    """

    def __init__(self, artifact: Artifact) -> None:
        spec = artifact.spec
        self._tokenizer = load_tokenizer(artifact)
        self._side = truncation_side(self._tokenizer)
        self.max_length = spec.max_length
        self.inputs = spec.inputs
        self._rows = spec.vocab_size
        self._forbidden = padding_in_texts(spec)
        self._specials = {
            False: self._tokenizer.num_special_tokens_to_add(False),
            True: self._tokenizer.num_special_tokens_to_add(True),
        }
        self._cutters: dict[tuple[int, str], LongTextCutter] = {}
        self._others: dict[tuple[int, str], Any] = {}
        self._set(self._tokenizer, self.max_length, self._side)

    def encode(
        self, texts: Texts, truncate: bool = True, truncation_side: str | None = None, max_length: int | None = None
    ) -> Encoded:
        """Encode one text or many; an error names the text's index, the limit and the mend.

        `truncation_side` ("left" or "right": what a text over the limit loses) and `max_length`, where given, stand in
        place of the artifact's own.
        """
        side = self._side if truncation_side is None else truncation_side
        if side not in ("left", "right"):
            raise InputError(f"truncation_side is {truncation_side!r}; it must be 'left' or 'right'")
        length = self.max_length if max_length is None else max_length
        if type(length) is not int or not 1 <= length <= self.max_length:
            raise InputError(f"max_length is {max_length!r}; it must be a number between 1 and {self.max_length}")
        items = self._checked(texts, length)
        # Nothing is set on a tokenizer here: other threads may be encoding with it.
        tokenizer = self._cutting(length, side)
        try:
            with panics_as_errors("a text"):
                # "fast": without offsets into the texts, which nobody asks for here.
                encodings = tokenizer.encode_batch_fast([self._shortened(item, length, side) for item in items])
        except TypeError:  # the library's word for a str that is not Unicode
            raise InputError(_surrogates(items)) from None
        truncated = [bool(e.overflowing) for e in encodings]
        if not truncate and any(truncated):
            i = truncated.index(True)
            raise TextTooLongError(
                f"text {i} has {self._count(items[i])} tokens, the limit is {length}: "
                "shorten it or call with truncate=True"
            )
        ids = [e.ids for e in encodings]
        for i, row in enumerate(ids):
            self._check_ids(i, items[i], row)
        return Encoded(ids, [e.type_ids for e in encodings], truncated)

    def windows(
        self, items: Sequence[Any], max_length: int, stride: int | None, kind: str = "text", cut: str = "longest_first"
    ) -> list[list[Any]]:
        """The `tokenizers.Encoding`s of each item: windows of `max_length` tokens, each sharing `stride` with the next.

        `kind`: items are texts ("text"), lists of words ("words") or pairs of texts ("pair"); of pairs `cut` names
        the text that is divided ("only_second"). With a stride of None only the first window is going to be read. Items
        are the caller's to check; ids of what is read are checked here.
        """
        tokenizer = self._windowing(max_length, stride or 0, cut)
        try:
            with panics_as_errors("a text"):
                encodings = tokenizer.encode_batch(list(items), is_pretokenized=kind == "words")
        except TypeError:
            raise InputError(_surrogates(list(items))) from None
        found = [[encoding, *encoding.overflowing] for encoding in encodings]
        for i, windows in enumerate(found):
            for window in windows[: 1 if stride is None else None]:
                self._check_ids(i, items[i], window.ids)
        return found

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has by itself, without special ones."""
        whole = self._windowing(0, 0, "")
        return [len(e.ids) for e in whole.encode_batch(list(texts), add_special_tokens=False)]

    def specials(self, pair: bool) -> int:
        """How many special tokens stand around a text, or around a pair."""
        return self._specials[pair]

    def plain(self) -> Any:
        """A tokenizer that does not cut, for what it says of itself: nothing may be set on it."""
        return self._windowing(0, 0, "")

    def with_special_mask(self, text: str) -> tuple[list[int], list[int]]:
        """Return (token ids of one text, which of them are special tokens: 1 or 0)."""
        encoding = self._tokenizer.encode(text)
        special = {i for i, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        return encoding.ids, [int(token in special) for token in encoding.ids]

    def _check_ids(self, index: int, text: Text, ids: list[int]) -> None:
        if not ids:
            raise InputError(f"text {index} gives no tokens: {text!r:.80}; give some text")
        if max(ids) >= self._rows:
            beyond = next(token for token in ids if token >= self._rows)
            raise InputError(
                f"text {index} has the token {self._tokenizer.id_to_token(beyond)!r} (id {beyond}), for which the "
                f"embedding table of {self._rows} rows has none: leave it out"
            )
        if self._forbidden is not None and self._forbidden in ids:
            token = self._tokenizer.id_to_token(self._forbidden)
            raise InputError(
                f"text {index} has the padding token {token!r} inside, which this model counts no position for: "
                "leave it out"
            )

    def _set(self, tokenizer: Any, length: int, side: str) -> None:
        tokenizer.enable_truncation(length, strategy="longest_first", direction=side)

    def _cutting(self, length: int, side: str) -> Any:
        """A tokenizer that cuts to this length at this side: the artifact's own, or one of a few more."""
        if (length, side) == (self.max_length, self._side):
            return self._tokenizer
        if (length, side) not in self._others:
            if len(self._others) >= 8:  # callers with a length for each text: parse anew instead of keeping all
                self._others.clear()
            other = self._whole()
            self._set(other, length, side)
            self._others[length, side] = other
        return self._others[length, side]

    def _windowing(self, length: int, stride: int, cut: str) -> Any:
        """A tokenizer that divides so; of length 0 one that does not cut. One of a few that are kept."""
        key = (length, f"{self._side} {stride} {cut}")
        tokenizer = self._others.get(key)
        if tokenizer is None:
            tokenizer = self._whole()
            if length:
                tokenizer.enable_truncation(length, stride=stride, strategy=cut, direction=self._side)
            if len(self._others) >= 8:
                self._others.clear()
            self._others[key] = tokenizer
        return tokenizer

    def _whole(self) -> Any:
        """A tokenizer that does not cut."""
        whole = type(self._tokenizer).from_str(self._tokenizer.to_str())
        whole.no_truncation()
        return whole

    def _shortened(self, item: Text, length: int, side: str) -> Text:
        """The same tokens from less text, for texts far over the limit."""
        first_size = CHARACTERS_A_TOKEN * (length + 1)
        if max(map(len, (item,) if isinstance(item, str) else item)) <= first_size:
            return item
        if (length, side) not in self._cutters:
            if len(self._cutters) >= 8:
                self._cutters.clear()
            self._cutters[length, side] = LongTextCutter(self._whole(), length, side == "left")
        cutter = self._cutters[length, side]
        try:
            return cutter.cut(item) if isinstance(item, str) else cutter.cut_pair(*item, self._specials[True])
        except TypeError:
            return item  # not Unicode, which the caller says

    def _count(self, text: Text) -> str:
        """Return how many tokens a text over the limit has; of a very long one its characters, which cost nothing."""
        size = len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
        if size > COUNTED_CHARACTERS:
            return f"{size} characters, more than {self.max_length}"
        return str(len(self._whole().encode_batch([text])[0].ids))

    def _checked(self, texts: Texts, length: int) -> list[Text]:
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
            if self._specials[not isinstance(text, str)] >= length:
                raise InputError(f"text {i}: the limit of {length} tokens leaves no room beside the specials")
        return items


def window_type_ids(windows: Sequence[Any]) -> list[list[int]]:
    """Token types of the windows of one text or pair: what the first window has around and in the divided text.

    The library gives the second text of all later windows type 1, whatever the tokenizer's template says.
    """
    first = windows[0]
    divided = max((s for s in first.sequence_ids if s is not None), default=None)
    if divided is None or len(windows) == 1:
        return [window.type_ids for window in windows]
    begin = first.sequence_ids.index(divided)
    behind = list(reversed(first.sequence_ids)).index(divided)
    types, own = first.type_ids, first.type_ids[begin]
    return [
        types[:begin] + [own] * (len(window.ids) - begin - behind) + types[len(types) - behind :] for window in windows
    ]


def _surrogates(items: list[Text]) -> str:
    """Return which text cannot be encoded as UTF-8."""
    for i, item in enumerate(items):
        for part in (item,) if isinstance(item, str) else item:
            try:
                part.encode("utf-8")
            except UnicodeEncodeError as error:
                return f"text {i} is not Unicode: character {error.start} is half of a surrogate pair"
    return "the tokenizer refuses the texts"
