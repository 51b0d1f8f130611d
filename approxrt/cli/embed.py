"""`approxrt embed`: vectors for texts."""

from __future__ import annotations

import warnings
from pathlib import Path

import typer

from approxrt.cli import output
from approxrt.cli.texts import TEXTS_ARGUMENT, gather, truncate_option


def command(
    artifact: Path = typer.Argument(..., help="Folder of the artifact."),
    texts: list[str] | None = TEXTS_ARGUMENT,
    out: Path | None = typer.Option(None, "--out", help="Write a float32 .npy file [texts, hidden] instead."),
    normalize: bool = typer.Option(True, help="Scale vectors to length 1."),
    truncate: bool = truncate_option(),
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    device: str = output.DEVICE_OPTION,
    json: bool = output.JSON_OPTION,
) -> None:
    """Embed texts given as arguments, or one a line on standard input."""
    import numpy as np

    from approxrt.errors import InputError
    from approxrt.runtime.loading import load

    items = gather(texts, False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vectors = load(artifact, device=device, threads=threads).embed(items, normalize=normalize, truncate=truncate)
    for warning in caught:
        output.log(str(warning.message))
    if out is not None:
        try:
            with open(out, "wb") as file:
                np.save(file, vectors)
        except OSError as error:
            raise InputError(f"cannot write {str(out)!r}: {error.strerror}; choose another --out") from None
    if json:
        document = {"shape": list(vectors.shape), "normalized": normalize}
        output.emit_json({**document, "out": str(out)} if out else {**document, "embeddings": vectors.tolist()})
    elif out is not None:
        output.log(f"{out}: float32 {list(vectors.shape)}")
    else:
        for vector in vectors:
            print(" ".join(f"{x:.6g}" for x in vector))
