"""`approxrt convert`: a checkpoint to an artifact, without data, in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from approxrt.cli import output


def command(
    checkpoint: str = typer.Argument(..., help="Folder of a Hugging Face checkpoint, a hub id, or a .gguf file."),
    out: Path = typer.Option(..., "--out", help="Folder to write the artifact to."),
    bits: int = typer.Option(
        8, "--bits", help="8 (int8 weights), 5 (int4 as in Q4_1 files), 4 (int4) or 32 (float32)."
    ),
    table_bits: int = typer.Option(
        8, "--table-bits", help="With --bits 5: 8, or 6, for the embedding table and the head."
    ),
    head_preview: Path | None = typer.Option(
        None, "--head-preview", help="With --bits 5: a text file to fit a preview of a decoder's head to."
    ),
    density: float = typer.Option(1.0, "--density", help="Share of weight tiles to keep, over 0 up to 1."),
    target: str = typer.Option("cpu", "--target", help="cpu (prunes tiles of 16x4 weights) or cuda (of 64x64)."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an artifact at --out."),
    inputs: str | None = typer.Option(
        None, "--inputs", help="single, pair or any: what the model accepts; default: what the checkpoint says."
    ),
    json: bool = output.JSON_OPTION,
) -> None:
    """Convert a checkpoint to an artifact with int8 or int4 weights, dense or block-sparse; needs no data."""
    import time

    from approxrt.artifact.reader import read_artifact
    from approxrt.artifact.summary import summarize
    from approxrt.conversion import convert

    start = time.perf_counter()
    with output.progress("reading the checkpoint", 100) as advance:
        shown = 0

        def show(done: int, total: int, name: str) -> None:
            nonlocal shown
            percent = 100 * done // total
            advance(percent - shown, f"converting {name}")
            shown = percent

        path = convert(
            checkpoint,
            out,
            bits=bits,
            density=density,
            overwrite=overwrite,
            inputs=inputs,
            progress=show,
            target=target,
            table_bits=table_bits,
            head_preview=head_preview,
        )
    seconds = time.perf_counter() - start
    summary = summarize(read_artifact(path))
    sizes = summary["card"]["sizes"]
    if json:
        output.emit_json(
            {
                "artifact": str(path),
                "seconds": round(seconds, 3),
                "bits": bits,
                "density": summary["density"],
                "target": target,
                "sizes": sizes,
                "mac_share": summary["mac_share"],
                "fidelity": summary["card"].get("fidelity"),
            }
        )
        return
    before, after = sizes["f32_weight_bytes"], sizes["artifact_weight_bytes"]
    output.stdout.print(
        f"{path}: {before / 1e6:.1f} MB in f32 -> {after / 1e6:.1f} MB ({before / after:.1f}x smaller), "
        f"density {summary['density']:.2f}, {_fidelity(summary['card'])}{seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )


def _fidelity(card: dict[str, Any]) -> str:
    """Say how near the artifact is to the float32 model, for people."""
    found = card.get("fidelity") or {}
    return f"cosine to f32 {found['cosine']:.4f}, " if "cosine" in found else ""
