"""From token ids to text that can be shown at once: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from approxrt.errors import InputError

REPLACEMENT = "�"  # what a tokenizer gives for bytes that are no UTF-8, such as half a character


class TextStream:
    """Text of a growing list of ids, in pieces whose sum is the text of all ids.

    Byte-level tokens may end within a character, and some tokenizers' text of a token depends on those before it. So a
    few tokens are decoded again with each new one, and what is new is given out once it ends with a whole character.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._begin = 0  # ids from here on are decoded again
        self._given = 0  # ids whose text was given out

    def add(self, token: int) -> str:
        """The text that has become certain."""
        self._ids.append(token)
        before, now = self._texts()
        if len(now) <= len(before) or now.endswith(REPLACEMENT):
            return ""
        self._begin, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def finish(self) -> str:
        """What is left: nothing more comes, so half a character is one that cannot be read."""
        before, now = self._texts()
        self._begin = self._given = len(self._ids)
        return now[len(before) :]

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        return (
            decode(self._ids[self._begin : self._given], skip_special_tokens=True),
            decode(self._ids[self._begin :], skip_special_tokens=True),
        )


class StopFilter:
    """Passes text on until one of the stop strings has come, wherever the borders of its pieces are."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = check_stop(stop)
        self._held = ""  # an end that may be the beginning of a stop string
        self.stopped = False

    def add(self, text: str) -> str:
        """What may be shown. Nothing comes after a stop string; the string itself is left out."""
        if self.stopped:
            return ""
        text = self._held + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]

    def finish(self) -> str:
        """What was held back and turned out to be no stop string."""
        text, self._held = self._held, ""
        return text


def check_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """The stop strings as a tuple; one string stands for itself. Raises InputError for an empty one."""
    strings = (stop,) if isinstance(stop, str) else tuple(stop)
    for i, text in enumerate(strings):
        if not isinstance(text, str) or not text:
            raise InputError(f"stop[{i}] is {text!r}; stop strings have at least one character (leave it out)")
    return strings


def _overlap(text: str, stop: str) -> int:
    """The longest end of `text` that `stop` begins with (and is longer than)."""
    for size in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
