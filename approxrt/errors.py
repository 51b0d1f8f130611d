"""Every exception that a user of approxrt can meet.

Each message names the value that was wrong, the limit it broke and what to do
about it. All derive from `ApproxrtError`, so one `except` catches them; those
that are a plain wrong argument also derive from `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence


class ApproxrtError(Exception):
    """Base of all errors that approxrt raises on purpose."""


class InputError(ApproxrtError, ValueError):
    """A call with arguments that cannot be answered (empty batch, unknown label, ids out of range)."""


class TextTooLongError(InputError):
    """A text has more tokens than the model has positions and truncation is off."""


class UnsupportedTaskError(InputError):
    """The model cannot do what was asked (generate on a classifier, a pair on a single-sentence model)."""


class DeviceError(ApproxrtError):
    """A device or an instruction set was asked for that this machine does not have."""


class MissingDependencyError(ApproxrtError, ImportError):
    """An optional package is needed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: pip install 'approxrt[{extra}]'"
        )
        self.package = package
        self.extra = extra


class ArtifactError(ApproxrtError):
    """An artifact cannot be read or written. `faults` lists everything that is wrong with it."""

    SHOWN = 40  # faults that the message spells out

    def __init__(self, path: object, faults: Sequence[str]) -> None:
        self.path = str(path)
        self.faults = tuple(faults)
        head = f"artifact {self.path!r}: "
        if len(self.faults) == 1:
            super().__init__(head + self.faults[0])
        else:
            shown = self.faults[: self.SHOWN]
            lines = "".join(f"\n  - {fault}" for fault in shown)
            left = len(self.faults) - len(shown)
            rest = f"\n  and {left} more, all in the error's `faults`" if left else ""
            super().__init__(f"{head}{len(self.faults)} faults{lines}{rest}")


class CheckpointError(ApproxrtError):
    """A Hugging Face checkpoint cannot be read: missing file or tensor, wrong shape, NaN weights."""


class UnsupportedModelError(CheckpointError):
    """The checkpoint's architecture, activation or position type is not implemented."""


class TokenizerError(ApproxrtError):
    """An artifact's tokenizer that breaks on a text that it should read."""


class NumericsError(ApproxrtError, ArithmeticError):
    """An artifact that computes NaN or infinity instead of an answer."""


class DataError(ApproxrtError, ValueError):
    """A data file cannot be used; the message gives the file and the line."""


class TruncationWarning(UserWarning):
    """Texts were cut to the model's maximum length; the message names them."""


class CheckpointWarning(UserWarning):
    """A checkpoint was converted, and something about the artifact should be known; the message says what."""


class TargetWarning(UserWarning):
    """An artifact was made for another device than it is loaded on; the message says what that costs."""


class ThreadsWarning(UserWarning):
    """The system gave fewer threads than were asked for; answers are the same, and the message says what to change."""


class TrainingError(ApproxrtError):
    """Training cannot go on: the loss is not a number, or there is nothing to resume."""


class CompressionError(ApproxrtError):
    """A compression cannot go on or cannot reach what was asked; the message says by how much and what to change."""
