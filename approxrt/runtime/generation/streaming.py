"""Turn token ids into text that can be shown at once: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from approxrt.errors import InputError

REPLACEMENT = "�"  # what a tokenizer gives for bytes that are no UTF-8, such as half a character


def hidden_tokens(tokenizer: Any) -> dict[int, str]:
    """The special tokens, which decoding leaves out, with their texts."""
    return {i: str(token.content) for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}


class TextStream:
    """Text of a growing list of ids, in pieces whose sum is the text that they add to the `prompt` before them.

    Byte-level tokens may end within a character, and some tokenizers' text of a token depends on those before it: alone
    it loses its first space. So a few tokens are decoded again with each new one, at first the prompt's last ones, and
    what is new is given out once it ends with a whole character.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = self._tail(prompt)
        self._begin = 0  # ids from here on are decoded again
        self._given = len(self._ids)  # ids whose text was given out

    def add(self, token: int) -> str:
        """The text that has become certain."""
        self._ids.append(token)
        before, now = self._texts()
        if now.endswith(REPLACEMENT):
            return ""
        new = _after(before, now)
        if new:
            if not before.endswith(REPLACEMENT):  # else the prompt ended within a character, which begins before it
                self._begin = self._given
            self._given = len(self._ids)
        return new

    def finish(self) -> str:
        """Return what is left: nothing more comes, so half a character is one that cannot be read."""
        before, now = self._texts()
        self._begin = self._given = len(self._ids)
        return _after(before, now)

    def _tail(self, prompt: Sequence[int]) -> list[int]:
        """A short end of the prompt that has text and does not begin within a character, or all of it."""
        count = 8
        while True:
            tail = list(prompt[-count:])
            text = self._tokenizer.decode(tail, skip_special_tokens=True)
            if count >= len(prompt) or (text and not text.startswith(REPLACEMENT)):
                return tail
            count *= 2

    def _texts(self) -> tuple[str, str]:
        decode = self._tokenizer.decode
        return (
            decode(self._ids[self._begin : self._given], skip_special_tokens=True),
            decode(self._ids[self._begin :], skip_special_tokens=True),
        )


def _after(before: str, now: str) -> str:
    """Return what `now` adds to `before`, whose last character may have been half of one."""
    end = len(before)
    while not now.startswith(before[:end]):
        end -= 1
    return now[end:]


class StopFilter:
    """Passes text on until one of the stop strings has come, wherever the borders of its pieces are."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = check_stop(stop)
        # An end that may be the beginning of a stop string, and of each of its characters whether it may be shown.
        self._held, self._visible = "", ""
        self.stopped = False

    def add(self, text: str, hidden: bool = False) -> str:
        """Return what may be shown. Nothing comes after a stop string; the string itself is left out.

        `hidden` text (of a special token) is never shown, but is looked at: it may be a stop string, or a part of one.
        """
        if self.stopped:
            return ""
        self._held += text
        self._visible += ("0" if hidden else "1") * len(text)
        found = [at for at in (self._held.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped = True
            shown = self._take(min(found))
            self._held = self._visible = ""
            return shown
        return self._take(len(self._held) - max((_overlap(self._held, stop) for stop in self._stop), default=0))

    def finish(self) -> str:
        """Return what was held back and turned out to be no stop string."""
        return self._take(len(self._held))

    def _take(self, count: int) -> str:
        text, visible = self._held[:count], self._visible[:count]
        self._held, self._visible = self._held[count:], self._visible[count:]
        if "0" not in visible:
            return text
        return "".join(c for c, shown in zip(text, visible, strict=True) if shown == "1")


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
