"""`approxrt bench`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from approxrt.cli import data as data_options
from approxrt.cli import output
from approxrt.tasks.format import PLAIN, DataFormat


def command(
    artifacts: list[Path] = typer.Argument(..., metavar="ARTIFACT...", help="One or more artifact folders."),
    against: str = typer.Option("", help="Peers: torch,onnxruntime,openvino, one variant such as torch-eager, or all."),
    checkpoint: Path | None = typer.Option(None, help="The checkpoint folder that peers are built from."),
    batch: str = typer.Option("1,8,32", help="Batch sizes."),
    seq: str = typer.Option("16,32,128", help="Sequence lengths in tokens; full sequences, no padding."),
    workload: str = typer.Option("", help="Batch x tokens one by one, such as 1x16,8x128; instead of the two above."),
    data: Path | None = typer.Option(None, help="A data file: real texts, lengths as they come, instead of --seq."),
    task: str | None = typer.Option(None, help="How to read --data: sst2, mrpc, ..., csv."),
    delimiter: str | None = data_options.DELIMITER,
    text_column: str | None = data_options.TEXT_COLUMN,
    pair_column: str | None = data_options.PAIR_COLUMN,
    label_column: str | None = data_options.LABEL_COLUMN,
    regression: bool | None = data_options.REGRESSION,
    quotes: bool | None = data_options.QUOTES,
    threads: int | None = typer.Option(None, help="Threads of every engine. Default: what approxrt.load would take."),
    profile: bool = typer.Option(False, "--profile", help="Also show where our own time goes, by operator."),
    budget: float = typer.Option(60.0, min=0.1, help="Seconds of timing, shared by all workloads."),
    out: Path | None = typer.Option(None, help="Write the JSON document to this file, too."),
    as_json: bool = output.JSON_OPTION,
) -> None:
    """Measure latency, throughput, load time and memory, side by side with other engines."""
    from approxrt.benchmark.measure import measure
    from approxrt.benchmark.report import document, tables
    from approxrt.errors import InputError
    from approxrt.peers.engines import parse_peers

    batches, seqs = _sizes(batch, "--batch"), _sizes(seq, "--seq")
    pairs = _pairs(workload) if workload else None
    if pairs and data is not None:
        output.usage("--workload is for full sequences: with --data, --batch gives the batch sizes")
    try:
        peers = parse_peers(against) if against else []
    except InputError as error:
        output.usage(f"--against: {error}")
    if peers and checkpoint is None:
        output.usage(
            "--against needs --checkpoint DIR: peers are built from the original checkpoint, "
            "which an artifact no longer holds"
        )
    if checkpoint is not None and not checkpoint.is_dir():
        output.usage(f"--checkpoint {checkpoint}: no such folder (a hub id must be downloaded first)")
    if data is not None and task is None:
        output.usage("--data needs --task NAME, which says how the file is read")
    form = data_options.data_format(delimiter, text_column, pair_column, label_column, regression, quotes)
    if data is None and form != PLAIN:
        output.usage("options of the data's layout are given without --data")
    token_ids = None if data is None or task is None else _token_ids(artifacts[0], data, task, form)
    result = measure(
        artifacts,
        peers,
        checkpoint,
        batches,
        seqs,
        token_ids,
        threads,
        budget,
        pairs,
        log=lambda line: output.log(line),
    )
    doc = document(result, artifacts=[str(path) for path in artifacts], checkpoint=str(checkpoint or ""))
    if profile:
        from approxrt.benchmark.profile import profile_artifacts

        output.log("profiling by operator")
        doc["profiles"] = profile_artifacts(artifacts, pairs or [(b, s) for b in batches for s in seqs], threads)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(doc, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if as_json:
        output.emit_json(doc)
        return
    for table in tables(doc):
        output.stdout.print(table, highlight=False)
    if profile:
        from approxrt.benchmark.profile import table as profile_table

        for entry in doc["profiles"]:
            output.stdout.print(profile_table(entry), highlight=False)


def _sizes(text: str, option: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.split(",")]
    except ValueError:
        sizes = [0]
    if min(sizes) < 1:
        output.usage(f"{option} {text!r}: expected positive numbers separated by commas, such as 1,8,32")
    return sizes


def _pairs(text: str) -> list[tuple[int, int]]:
    pairs = []
    for part in text.split(","):
        sizes = part.strip().lower().split("x")
        if len(sizes) != 2 or not all(size.strip().isascii() and size.strip().isdigit() for size in sizes):
            output.usage(f"--workload {text!r}: expected pairs of batch x tokens, such as 1x16,8x128")
        pairs.append((int(sizes[0]), int(sizes[1])))
    if min(map(min, pairs)) < 1:
        output.usage(f"--workload {text!r}: sizes must be positive")
    return list(dict.fromkeys(pairs))


def _token_ids(artifact: Path, data: Path, task: str, form: DataFormat) -> list[list[int]]:
    """Token ids of the file's texts, by the artifact's own tokenizer, cut to its limit."""
    from approxrt.artifact.reader import read_artifact
    from approxrt.runtime.tokenize import TextEncoder
    from approxrt.tasks.readers import read_task

    encoder = TextEncoder(read_artifact(artifact))
    return encoder.encode(read_task(task, data, form=form).texts).ids
