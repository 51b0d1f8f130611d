"""Perplexity of a decoder on a plain text: e to the mean negative log-likelihood of its tokens (natural logarithm).

The text is one run of tokens. A window of `context` tokens moves over it by `stride`; a token is scored in the first
window that it is in, so that it has at least context - stride tokens before it (less at the beginning of the text,
whose first token is not scored). stride = context: windows that do not overlap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.files import MAX_DATA_BYTES
from approxrt.artifact.files import read_text as read_file_text
from approxrt.artifact.layout import unreadable
from approxrt.errors import DataError, InputError

CONTEXT, STRIDE = 512, 256

# (tokens in the cache already, all tokens of the window) -> logits of those from the first number on
Score = Callable[[list[int], int], np.ndarray]


@dataclass(frozen=True)
class Window:
    """Tokens begin .. end-1 of the text; those from `scored` on are scored."""

    begin: int
    end: int
    scored: int


def windows(tokens: int, context: int, stride: int) -> Iterator[Window]:
    """Windows over a text of `tokens` tokens, each scored once but the first."""
    done = 1
    for begin in range(0, tokens, stride):
        end = min(begin + context, tokens)
        if end > done:
            yield Window(begin, end, done)
        done = max(done, end)
        if end == tokens:
            return


def negative_log_likelihood(logits: np.ndarray, targets: np.ndarray) -> float:
    """Sum over rows of -log softmax(logits)[target]; logits float32 [n, vocab]."""
    peak = logits.max(axis=1, keepdims=True)
    total = np.exp(logits - peak).sum(axis=1, dtype=np.float64)
    chosen = logits[np.arange(len(targets)), targets].astype(np.float64)
    return float((np.log(total) + peak[:, 0] - chosen).sum())


def perplexity(
    score: Score,
    ids: list[int],
    context: int = CONTEXT,
    stride: int = STRIDE,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """{perplexity, tokens (scored), context, stride}.

    score(window ids, first) returns the logits of the tokens from `first` on, each of the token after it, float32
    [len(ids) - first, vocab].
    """
    if type(context) is not int or context < 2:
        raise InputError(f"context is {context!r}; it must be an integer of at least 2")
    if type(stride) is not int or not 1 <= stride <= context:
        raise InputError(f"stride is {stride!r}; it must be an integer of 1 to the context's {context}")
    if len(ids) < 2:
        raise InputError(f"the text has {len(ids)} tokens; perplexity needs at least 2")
    total, count = 0.0, 0
    for window in windows(len(ids), context, stride):
        part = ids[window.begin : window.end]
        # The logits of a token are about the next one; where windows do not overlap, a window's first is not scored.
        first = max(window.scored - window.begin, 1) - 1
        targets = np.asarray(part[first + 1 :])
        total += negative_log_likelihood(score(part[:-1], first), targets)
        count += len(targets)
        if progress:
            progress(len(targets))
    return {"perplexity": math.exp(total / count), "tokens": count, "context": context, "stride": stride}


def read_text(path: Path) -> str:
    """A plain text file, UTF-8. Raises DataError."""
    try:
        text = read_file_text(path, MAX_DATA_BYTES)
    except OSError as error:
        raise DataError(unreadable(str(path), error)) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no UTF-8 text: byte {error.start} is invalid") from error
    if not text.strip():
        raise DataError(f"{path} is empty: give a file with some text")
    return text


def engine_score(engine: Any) -> Score:
    """`Score` of a `DecoderEngine`."""

    def score(ids: list[int], first: int) -> np.ndarray:
        cache = engine.cache(len(ids))
        if first:
            engine.prefill(cache, ids[:first])
        logits: np.ndarray = engine.step([cache], [ids[first:]], True)
        return logits

    return score
