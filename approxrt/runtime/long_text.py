"""Cut a text far over the limit before it is tokenised, without changing the tokens that are kept.

A tokenizer takes about a microsecond a character, so a text of megabytes would cost seconds of which a few hundred
tokens survive. Where the tokenizer splits texts into words before anything else, the tokens of a word depend on
that word alone: those of a piece of the text are the text's own, but for the words at the edge where it was cut. So a
piece is tokenised, and doubled until it yields enough tokens that are not at its edge.
"""

from __future__ import annotations

import json
import re
from typing import Any

# Characters that the first piece has for each token that is kept; pieces double from there.
CHARACTERS_A_TOKEN = 16
# Words at the edge of a piece whose tokens are not trusted: a normaliser or an added token may reach over one.
EDGE_WORDS = 8
# Letters and digits but for those that BERT's normaliser makes words of their own, and emoji, which it joins.
_LETTERS = "[^\\W_\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002fa1f]"
_EMOJI = "[\U0001f300-\U0001f64f\U0001f680-\U0001f6c5]"
# Pre-tokenizers that split at white space at least, so that a word's tokens are its own.
_SPLITTERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace")


def encode_apart(tokenizer: Any, text: str, add_special_tokens: bool = False) -> Any:
    """Return the encoding of one text. Other threads of the process run meanwhile.

    The library's `encode` keeps Python's lock, for a second a megabyte; `encode_batch` does not.
    """
    return tokenizer.encode_batch([text], add_special_tokens=add_special_tokens)[0]


class LongTextCutter:
    """Cuts texts for a tokenizer that keeps `max_length` tokens of them.

    `tokenizer` is a `tokenizers.Tokenizer` of its own, which neither truncates nor pads. `left` says that a text loses
    its beginning. Where the tokenizer does not split texts into words, texts stay whole.
    """

    def __init__(self, tokenizer: Any, max_length: int, left: bool) -> None:
        self._tokenizer, self._max_length, self._left = tokenizer, max_length, left
        data = json.loads(tokenizer.to_str())
        self._applies = _splits(data["pre_tokenizer"])
        self._shorten = _word_pattern(data)

    def cut(self, text: str, at_least: int = 0) -> str:
        """The end of `text` that is read, with more than `max_length` and `at_least` tokens; or all of it.

        The tokens that truncation to `max_length` keeps are the same for both.
        """
        wanted = max(self._max_length, at_least) + 1
        size = CHARACTERS_A_TOKEN * wanted
        if not self._applies or len(text) <= size:
            return text
        while size < len(text):
            piece = text[-size:] if self._left else text[:size]
            if self._shorten is not None:
                piece = self._shorten.sub(_kept, piece)
            words = encode_apart(self._tokenizer, piece).word_ids
            if len(words) > wanted:
                # Words are numbered from the beginning; those of added tokens are numbered, too.
                first, last = words[0] or 0, words[-1] or 0
                kept = words[-wanted] if self._left else words[wanted - 1]
                if kept is not None and (kept - first > EDGE_WORDS if self._left else last - kept > EDGE_WORDS):
                    return piece
            size *= 4
        return text if self._shorten is None else self._shorten.sub(_kept, text)

    def cut_pair(self, first: str, second: str, specials: int) -> tuple[str, str]:
        """The same for a pair, which loses tokens of the longer text first; `specials` of them stand around the two.

        Where both are over the limit they share it, and an odd token goes to the longer: it must stay the longer.
        """
        pieces = self.cut(first), self.cut(second)
        whole = [piece == text for piece, text in zip(pieces, (first, second), strict=True)]
        if all(whole):
            return pieces
        if not any(whole) and (self._max_length - specials) % 2 == 0:
            return pieces
        if any(whole):
            first_is_longer = whole[1]  # the other one is all there, and was too short to be cut
        else:
            first_is_longer = self._count(first) > self._count(second)
        if first_is_longer:
            return self.cut(first, self._count(pieces[1])), pieces[1]
        return pieces[0], self.cut(second, self._count(pieces[0]))

    def _count(self, text: str) -> int:
        return len(encode_apart(self._tokenizer, text).ids)


def _splits(pre_tokenizer: dict[str, Any] | None) -> bool:
    if pre_tokenizer is None:
        return False
    kind = pre_tokenizer["type"]
    if kind == "Sequence":
        return any(_splits(part) for part in pre_tokenizer["pretokenizers"])
    if kind == "ByteLevel":
        return bool(pre_tokenizer.get("use_regex", True))
    if kind == "Metaspace":
        return bool(pre_tokenizer.get("split", True))
    return kind in _SPLITTERS


def _word_pattern(data: dict[str, Any]) -> re.Pattern[str] | None:
    """Runs that are one unknown word whatever their length, with what of them to keep; and runs of white space.

    Only a WordPiece model has a longest word, and only BERT's way of splitting drops white space.
    """
    longest = data["model"].get("max_input_chars_per_word")
    if longest is None or data["pre_tokenizer"]["type"] != "BertPreTokenizer":
        return None
    within = re.compile(rf"{_LETTERS}*|{_EMOJI}*|.*\s.*", re.DOTALL)
    if any(within.fullmatch(token["content"]) for token in data["added_tokens"]):
        return None  # it may stand inside of a run
    runs = (f"({kind}{{{int(longest) + 1}}}){kind}+" for kind in (_LETTERS, _EMOJI))
    return re.compile("|".join((*runs, "[ \\t\\r\\n]{2,}")))


def _kept(run: re.Match[str]) -> str:
    return run[1] or run[2] or " "
