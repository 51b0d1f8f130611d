"""Let commands speak: tables and progress for people on stderr/stdout, one JSON document for programs."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from approxrt.errors import CheckpointWarning, TargetWarning, ThreadsWarning, TruncationWarning
from approxrt.progress import Show

# A file or a pipe has no width of its own: tables get room instead of being cut to 80 columns.
PIPE_WIDTH = 160
stdout = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
stderr = Console(stderr=True)

JSON_OPTION = typer.Option(False, "--json", help="Print one JSON document on stdout; logs go to stderr.")
TORCH_DEVICE_OPTION = typer.Option(
    "auto", "--device", help="Where torch computes: cpu, cuda, or auto: a GPU if there is one."
)
DEVICE_OPTION = typer.Option("auto", "--device", help="cpu, cuda (an NVIDIA GPU), or auto: the CPU.")


def emit_json(document: Any) -> None:
    """Print the command's one JSON document."""
    json.dump(document, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False, default=str)
    sys.stdout.write("\n")
    sys.stdout.flush()


def log(message: str) -> None:
    """A line for people, on stderr, so that stdout stays the answer."""
    stderr.print(message, highlight=False, markup=False, soft_wrap=True)


def show_warnings() -> None:
    """Print approxrt's own warnings as a line on stderr, without the place in its code; others stay as they are."""
    others = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, CheckpointWarning | TargetWarning | ThreadsWarning | TruncationWarning):
            stderr.print(f"[bold yellow]warning:[/] {_escape(str(message))}", highlight=False, soft_wrap=True)
        else:
            others(message, category, *place, **more)

    warnings.showwarning = show


def fail(error: BaseException) -> NoReturn:
    """Report an error and leave with exit code 1. With --json the document says so too."""
    if "--json" in sys.argv:
        emit_json({"error": {"type": type(error).__name__, "message": str(error)}})
    stderr.print(f"[bold red]error:[/] {_escape(str(error))}", highlight=False, soft_wrap=True)
    sys.exit(1)


def usage(message: str) -> NoReturn:
    """A wrong option or argument: exit code 2 with typer's usual form."""
    raise typer.BadParameter(message)


@contextmanager
def progress(description: str, total: float) -> Iterator[Any]:
    """Show how far a command has come, with the time left: a bar on a terminal, else a line on stderr now and then.

    Yields `advance(n=1, description=None)`.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    terminal = sys.stderr.isatty()
    lines = ProgressLines(total, log)
    with Progress(*columns, console=stderr, transient=True, disable=not terminal) as bar:
        task = bar.add_task(description, total=total)

        def advance(n: float = 1, description: str | None = None) -> None:
            bar.update(task, advance=n, description=description)
            if not terminal:
                lines.advance(n, description)

        yield advance


@contextmanager
def shares(description: str) -> Iterator[Show]:
    """The same for work that says its share: yields a function of (share in [0, 1], what is going on)."""
    with progress(description, 1000) as advance:
        shown = 0

        def show(share: float, text: str) -> None:
            nonlocal shown
            step = max(0, round(1000 * share) - shown)
            shown += step
            advance(step, text)

        yield show


LEAST_SHARE = 0.05  # of the work that must be done before the time left is more than a guess


class ProgressLines:
    """A line every `EVERY_S` seconds, none for what is over before: "42 %, 3:10 left: rounding"."""

    EVERY_S = 10.0

    def __init__(self, total: float, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self.write, self.clock = total, write, clock
        self.done, self.text = 0.0, ""
        self.begun = self.last = clock()

    def advance(self, n: float, text: str | None) -> None:
        """Count, and write a line if it is time."""
        self.done += n
        self.text = text or self.text
        now = self.clock()
        if now - self.last < self.EVERY_S:
            return
        self.last = now
        share = min(1.0, self.done / self.total) if self.total else 0.0
        left = f", {_minutes((now - self.begun) * (1 - share) / share)} left" if LEAST_SHARE <= share < 1 else ""
        self.write(f"{share:.0%}{left}{': ' if self.text else ''}{self.text}")


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
