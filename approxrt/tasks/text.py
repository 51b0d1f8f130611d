"""The text of a decoder's compression: where it lies, its tokens, what calibrates and what validates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from approxrt.errors import DataError
from approxrt.tasks.lm import read_text
from approxrt.tasks.readers import TEXT_SUFFIXES, find_split

SEQUENCE = 512  # tokens of a piece of text, and of a window of validation text
VALIDATION_TOKENS = 8192
GAP_SEQUENCES = 8  # between the texts of the two, at most


def text_file(data: Any) -> Path:
    """The text itself, or a folder's train file. Raises DataError."""
    path = Path(data)
    if not path.is_dir():
        return path
    found = find_split(path, "train", TEXT_SUFFIXES)
    if found is None:
        raise DataError(f"{path} has no train{'|'.join(TEXT_SUFFIXES)}: give a folder with one, or the file itself")
    return found


def token_ids(tokenizer_json: bytes, path: Path) -> list[int]:
    """A plain text in the model's tokens."""
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_str(tokenizer_json.decode("utf-8")).encode(read_text(path)).ids
    return ids


def split(ids: list[int], sequence: int) -> tuple[list[int], list[int]]:
    """Return (calibration, validation) of a text: its first four fifths, and pieces of its last fifth.

    Validation is `VALIDATION_TOKENS` at most, in pieces of `sequence` tokens that are spread evenly, the first of them
    `GAP_SEQUENCES` behind what calibrates where there is room for that: a document that lies across the border, or the
    only one that validates, would make a model that has learnt it look better than it is. Raises DataError.
    """
    cut = len(ids) - len(ids) // 5
    if cut < sequence or len(ids) - cut < 2:
        raise DataError(
            f"the text has {len(ids)} tokens; at least {sequence + sequence // 4 + 1} are needed to calibrate and "
            "validate"
        )
    rest = ids[cut:]
    rest = rest[min(GAP_SEQUENCES * sequence, len(rest) // 4) :]
    count = VALIDATION_TOKENS // sequence
    if len(rest) > count * sequence:
        step = (len(rest) - sequence) // (count - 1) if count > 1 else 0
        rest = [token for piece in range(count) for token in rest[piece * step : piece * step + sequence]]
    return ids[:cut], rest
