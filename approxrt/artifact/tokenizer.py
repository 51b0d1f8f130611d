"""Parse an artifact's tokenizer.json, and compare its token ids with the rows of the embedding table.

Reader and writer share this. `tokenizers` builds the tokenizer; what it does not check is checked here.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Tokens that a fault names.
_SHOWN = 5


def parse_tokenizer(data: bytes, rows: int) -> Any:
    """The `tokenizers.Tokenizer` of a tokenizer.json, without padding; truncation is the file's.

    Each id of the vocabulary, and each that the tokenizer puts around a text, must be one of `rows` rows. Tokens may
    share rows (`approxrt.vocabulary.row_sharing`), and added tokens may lack one, as in checkpoints that transformers
    runs: whoever encodes refuses texts that have them. Raises ValueError, whose message begins with a verb.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_buffer(data)
        # tokenizer.json may carry a padding of its training days.
        tokenizer.no_padding()
        vocabulary = tokenizer.get_vocab_size(with_added_tokens=False)
        # The ids around a text, and around a pair, do not depend on the text.
        around = [*tokenizer.encode("").ids, *tokenizer.encode("", "").ids]
    except BaseException as error:  # the library raises bare Exception, and panics of Rust as a BaseException
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        raise ValueError(f"cannot be used: {str(error)[:500]}") from None
    if vocabulary > rows or may_exceed(data, rows):
        ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=False)
        beyond = sorted((i, token) for token, i in ids.items() if i >= rows)
        if beyond:
            named = ", ".join(f"{token[:80]!r} (id {i})" for i, token in beyond[:_SHOWN])
            more = f" and {len(beyond) - _SHOWN} more" if len(beyond) > _SHOWN else ""
            raise ValueError(
                f"has ids up to {beyond[-1][0]}, the embedding table {rows} rows: {named}{more} have none; is it "
                "another model's? Convert the checkpoint again"
            )
    highest = max(around, default=0)
    if highest >= rows:
        raise ValueError(
            f"puts the token {tokenizer.id_to_token(highest)!r:.80} (id {highest}) around every text, the embedding "
            f"table has {rows} rows: is it another model's? Convert the checkpoint again"
        )
    return tokenizer


def is_panic(error: BaseException) -> bool:
    """Tell whether a library in Rust panicked: that exception derives from BaseException, and is not to be imported."""
    return type(error).__name__ == "PanicException"


def may_exceed(data: bytes, rows: int) -> bool:
    """Tell whether a member of the JSON objects in `data` may be an integer of at least `rows`.

    Quick, as to ask the library for its vocabulary is not (a dict of 30,000 strings takes a tenth of all of loading):
    ids of a vocabulary are members `"token": id`, so every number behind a colon or white space is looked at, some in
    the middle of a token, too. Only whoever gets True must ask.
    """
    width = len(str(rows))
    text = np.frombuffer(data, np.uint8)
    if len(text) <= width:
        return False
    digits = text - np.uint8(ord("0"))  # what is no digit wraps around
    is_digit = digits < 10
    # Where so many digits in a row begin, behind what may stand before a member's value.
    before = text[:-width]
    runs = (before <= ord(" ")) | (before == ord(":"))
    for i in range(1, width + 1):
        runs &= is_digit[i : len(text) - width + i]
    starts = np.flatnonzero(runs) + 1
    values = np.zeros(len(starts), np.int64)
    for i in range(width):
        values = values * 10 + digits[starts + i]
    longer = is_digit[np.minimum(starts + width, len(text) - 1)] & (starts + width < len(text))
    return bool(np.any(longer | (values >= rows)))
