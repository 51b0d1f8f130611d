"""Run a command of the CLI in this process."""

from __future__ import annotations

import importlib
import importlib.util

import typer
from typer.testing import CliRunner


def run_command(name: str, *arguments: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(importlib.import_module(f"approxrt.cli.{name}").command)
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return result.exit_code, result.stdout
