"""`approxrt generate`: text that follows a prompt, shown as it comes."""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path
from typing import Any

import typer

from approxrt.cli import output
from approxrt.cli.texts import gather
from approxrt.errors import UnsupportedTaskError


def command(
    artifact: Path = typer.Argument(..., help="Folder of the artifact."),
    prompts: list[str] | None = typer.Argument(None, help="Prompts; without any, one a line is read from stdin."),
    max_new_tokens: int = typer.Option(128, "--max-new-tokens", help="Tokens at most, at least 1."),
    temperature: float = typer.Option(0.0, "--temperature", help="0: the likeliest token each time."),
    top_k: int = typer.Option(0, "--top-k", help="Draw from the k likeliest tokens; 0: from all."),
    top_p: float = typer.Option(1.0, "--top-p", help="Draw from the likeliest tokens with this probability together."),
    min_p: float = typer.Option(
        0.0, "--min-p", help="Draw from tokens at least this share as likely as the likeliest."
    ),
    repetition_penalty: float = typer.Option(1.0, "--repetition-penalty", help="Over 1: no token likes to come again."),
    stop: list[str] = typer.Option([], "--stop", help="A text to stop before; may be given several times."),
    seed: int | None = typer.Option(None, "--seed", help="The same seed, the same text."),
    chat: bool = typer.Option(False, "--chat", help="Prompts are a user's messages: use the model's chat template."),
    system: str | None = typer.Option(None, "--system", help="With --chat: a system message before it."),
    truncate: bool = typer.Option(False, "--truncate", help="Cut the beginning of a prompt that is too long."),
    cache: str | None = typer.Option(None, "--cache", help="Keys and values as f32, f16 or int8; default f16."),
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    device: str = output.DEVICE_OPTION,
    json: bool = output.JSON_OPTION,
) -> None:
    """Generate the text that follows each prompt, streamed to stdout."""
    from approxrt.runtime.decoder_model import DecoderModel
    from approxrt.runtime.loading import load

    texts = [str(text) for text in gather(prompts, pair=False)]
    model = load(artifact, device=device, threads=threads, cache_kind=cache)
    if not isinstance(model, DecoderModel):
        raise UnsupportedTaskError(f"generate: {str(artifact)!r} is no decoder; use classify or embed")
    before = [] if system is None else [{"role": "system", "content": system}]
    if before and not chat:
        output.usage("--system needs --chat")
    answers: list[dict[str, Any]] = []
    for text in texts:
        prompt: Any = [*before, {"role": "user", "content": text}] if chat else text
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pieces = model.generate(
                prompt,
                max_new_tokens,
                temperature,
                top_k,
                top_p,
                stop,
                seed,
                stream=True,
                min_p=min_p,
                repetition_penalty=repetition_penalty,
                truncate=truncate,
            )
        for warning in caught:
            output.log(str(warning.message))
        start, parts = time.perf_counter(), []
        for piece in pieces:
            parts.append(piece)
            if not json:
                sys.stdout.write(piece)
                sys.stdout.flush()
        answers.append({"prompt": text, "text": "".join(parts), "seconds": round(time.perf_counter() - start, 3)})
        if not json:
            sys.stdout.write("\n")
    if json:
        output.emit_json(answers)
