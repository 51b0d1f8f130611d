"""`approxrt export-triton`: a model repository for NVIDIA Triton Inference Server."""

from __future__ import annotations

from pathlib import Path

import typer

from approxrt.cli import output


def command(
    artifact: Path = typer.Argument(..., help="Folder of the artifact."),
    repository: Path = typer.Option(..., "--out", help="Triton's model repository; made if it is not there."),
    name: str | None = typer.Option(None, "--name", help="The model's name in Triton; default: the folder's."),
    threads: int | None = typer.Option(None, "--threads", help="Of an instance's engine."),
    instances: int = typer.Option(1, "--instances", help="Processes that Triton runs of it."),
    json: bool = output.JSON_OPTION,
) -> None:
    """Write a model for NVIDIA Triton Inference Server's Python backend."""
    from approxrt.serving.triton import export

    path = export(artifact, repository, name, threads, instances)
    if json:
        output.emit_json({"model": path.name, "path": str(path)})
        return
    output.stdout.print(
        f"{path} (tritonserver --model-repository={repository})", markup=False, highlight=False, soft_wrap=True
    )
