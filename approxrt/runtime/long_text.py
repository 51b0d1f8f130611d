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
# Pre-tokenizers that split at white space at least, so that a word's tokens are its own.
_SPLITTERS = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace")


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
        if self._shorten is not None:
            text = self._shorten.sub(lambda found: found[1] or " ", text)
        while size < len(text):
            piece = text[-size:] if self._left else text[:size]
            words = self._tokenizer.encode(piece, add_special_tokens=False).word_ids
            if len(words) > wanted:
                # Words are numbered from the beginning; those of added tokens are numbered, too.
                first, last = words[0] or 0, words[-1] or 0
                kept = words[-wanted] if self._left else words[wanted - 1]
                if kept is not None and (kept - first > EDGE_WORDS if self._left else last - kept > EDGE_WORDS):
                    return piece
            size *= 4
        return text

    def tokens(self, text: str) -> list[int]:
        """Token ids of all of `text`, without special ones around it."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


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
    """Runs of letters that are one unknown word whatever their length, and of spaces, with what of them to keep.

    Only a WordPiece model has a longest word, and only BERT's way of splitting drops white space.
    """
    longest = data["model"].get("max_input_chars_per_word")
    plain = all(re.search(r"[^A-Za-z0-9]", token["content"]) for token in data["added_tokens"])
    if longest is None or data["pre_tokenizer"]["type"] != "BertPreTokenizer" or not plain:
        return None
    return re.compile(rf"([A-Za-z0-9]{{{int(longest) + 1}}})[A-Za-z0-9]+|  +")
