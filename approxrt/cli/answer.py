"""`approxrt answer`: answers that stand in a context."""

from __future__ import annotations

from pathlib import Path

import typer

from approxrt.cli import output
from approxrt.cli.texts import gather


def command(
    artifact: Path = typer.Argument(..., help="Folder of the artifact."),
    texts: list[str] | None = typer.Argument(
        None, help="QUESTION CONTEXT QUESTION CONTEXT ...; without any, lines of both with a tab between are read."
    ),
    top_k: int = typer.Option(1, "--top-k", help="How many answers a question, best first."),
    max_answer_len: int = typer.Option(15, "--max-answer-len", help="Tokens of an answer, at most."),
    max_length: int | None = typer.Option(
        None, "--max-length", help="Tokens of a window. Default: 384, or the model's limit if that is less."
    ),
    stride: int | None = typer.Option(
        None, "--stride", help="Tokens that windows share. Default: 128, or half of a window if that is less."
    ),
    impossible: bool = typer.Option(False, "--impossible", help="No answer is an answer, too: an empty one."),
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    device: str = output.DEVICE_OPTION,
    json: bool = output.JSON_OPTION,
) -> None:
    """Answer questions by what stands in their contexts, given as arguments or one pair a line on standard input."""
    from approxrt.runtime.loading import load

    items = gather(texts, True, "answer, with a context for each question,")
    model = load(artifact, device=device, threads=threads)
    questions, contexts = ([item[side] for item in items] for side in (0, 1))
    found = model.answer(
        questions, contexts, top_k, max_answer_len, max_length, stride, handle_impossible_answer=impossible
    )
    answers = [[each] if top_k == 1 else each for each in found]
    if json:
        output.emit_json([{"question": q, "answers": each} for q, each in zip(questions, answers, strict=True)])
        return
    for question, each in zip(questions, answers, strict=True):
        output.stdout.print(question, markup=False, highlight=False, soft_wrap=True)
        for answer in each:
            text = answer["answer"] or "(no answer)"
            shown = f"  {answer['score']:.4f}  {answer['start']}-{answer['end']}  {text}"
            output.stdout.print(shown, markup=False, highlight=False, soft_wrap=True)
