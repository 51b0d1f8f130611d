"""Turn what goes wrong inside a shared step into an error of the one who asked for it.

Texts of several callers share passes and steps: what one of them breaks must end that one alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from approxrt.artifact.tokenizer import is_panic
from approxrt.errors import ApproxrtError, NumericsError, TokenizerError


@contextmanager
def panics_as_errors(what: str) -> Iterator[None]:
    """Raise TokenizerError for a panic of the tokenizers library within the block.

    A panic of Rust code is a BaseException, which nobody who handles errors sees; it would end the thread, or the event
    loop, that it meets.
    """
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise TokenizerError(
            f"the artifact's tokenizer fails on {what} ({str(error)[:200]}): leave the text out, or convert the "
            "checkpoint again with a sound tokenizer.json"
        ) from None


def as_error(error: BaseException) -> Exception:
    """Return what ended one text as an Exception; what asks the process to stop is raised."""
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error
    if isinstance(error, Exception):
        return error
    return ApproxrtError(f"{type(error).__name__}: {error}")


def check_rows(rows: np.ndarray) -> np.ndarray:
    """Return answers float32 [n, width] as they are. Raises NumericsError naming the first that is none."""
    if not np.isfinite(rows).all():
        first = int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        check_finite(np.abs(rows[first]), f"text {first}")
    return rows


def check_token_rows(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Return answers float32 [tokens, width] of each text as they are. Raises NumericsError as `check_rows`."""
    for i, row in enumerate(rows):
        if not np.isfinite(row).all():
            check_finite(np.abs(row), f"text {i}")
    return rows


def check_finite(row: np.ndarray, what: str) -> None:
    """Raise NumericsError where `row` float32 [n] has NaN or infinity; -infinity of some logits is an answer."""
    largest = row.max()
    if not np.isfinite(largest):
        raise NumericsError(
            f"{what}: the model gives {'NaN' if np.isnan(largest) else 'infinity'}, which is no answer; its weights or "
            "activations are out of range: convert the checkpoint again, or ask whoever made the artifact"
        )
