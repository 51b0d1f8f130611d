"""The `approxrt` program: one file a command, found by name in this folder.

A command's module defines `command`, a function with a typer signature; its first
docstring line is the help text. Modules import heavy packages inside the function,
so that `approxrt --help` stays instant. Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import importlib
import sys

import typer

import approxrt
from approxrt.cli import output
from approxrt.errors import ApproxrtError

COMMANDS = (
    "finetune",
    "analyze",
    "compress",
    "convert",
    "match-signs",
    "inspect",
    "eval",
    "bench",
    "classify",
    "embed",
    "tag",
    "answer",
    "generate",
    "serve",
    "export-triton",
    "doctor",
)

app = typer.Typer(
    name="approxrt",
    help="Fine-tuned transformers, much faster and smaller: int8 and block-sparse weights, executed for real.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"approxrt {approxrt.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    pass


for _name in COMMANDS:
    # `eval` is a builtin's name, so its module is `evaluate`.
    _file = "evaluate" if _name == "eval" else _name.replace("-", "_")
    _module = importlib.import_module(f"approxrt.cli.{_file}")
    app.command(name=_name)(_module.command)


def main() -> None:
    """Run the program; an error of approxrt becomes one clear message and exit code 1."""
    output.show_warnings()
    try:
        app()
    except ApproxrtError as error:
        output.fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)


if __name__ == "__main__":
    main()
