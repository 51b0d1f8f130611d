"""Decoding with many tokens in the cache: an artifact as it is, and as `approxrt match-signs` made it.

    python bench/bench_sign_decoding.py DENSE SIGNS --data test.txt --out bench/results/sign-decoding.json

At every context the cache is filled but for the last tokens, which are then written one by one, in turns by the two
engines; reading the prompt is timed, too. Perplexity is that of the text's first windows at the same context, which
move by a quarter of it, so that a token has at least three quarters of a context before it (but in the first window).
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.benchmark.report import git_commit, machine, versions
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.tasks.lm import engine_score, perplexity, read_text

SCHEMA = "approxrt.sign-decoding/1"
STEPS = 32
NAMES = ("all keys", "kept keys")


def spread(values: list[float]) -> dict[str, float]:
    """Median, p20 and p80."""
    p20, median, p80 = np.percentile(values, (20, 50, 80))
    return {"median": float(median), "p20": float(p20), "p80": float(p80)}


def times(engines: list[DecoderEngine], context: int, rounds: int) -> dict[str, Any]:
    """By engine {prompt, decode}: tokens a second."""
    ids = np.random.default_rng(0).integers(0, engines[0].spec.vocab_size, context).tolist()
    found: dict[str, dict[str, list[float]]] = {name: {"prompt": [], "decode": []} for name in NAMES}
    for _ in range(rounds):
        for name, engine in zip(NAMES, engines, strict=True):
            cache = engine.cache(context)
            begin = time.perf_counter()
            engine.prefill(cache, ids[: context - STEPS])
            found[name]["prompt"].append((context - STEPS) / (time.perf_counter() - begin))
            begin = time.perf_counter()
            for token in ids[context - STEPS :]:
                engine.step([cache], [[token]])
            found[name]["decode"].append(STEPS / (time.perf_counter() - begin))
    return {name: {what: spread(values) for what, values in own.items()} for name, own in found.items()}


def main() -> None:
    """Measure and write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense", type=Path)
    parser.add_argument("signs", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("times", "perplexity"), help="the other is taken from --out as it is")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    old = json.loads(options.out.read_text()) if options.only else {}
    before = {row["context"]: row for row in old.get("rows", [])}
    engines = [DecoderEngine(read_artifact(path), options.threads) for path in (options.dense, options.signs)]
    ids = approxrt.load(options.dense).tokenize(read_text(options.data))
    rows = []
    for context in options.contexts:
        row: dict[str, Any] = {"context": context}
        if options.only != "perplexity":
            row["times"] = times(engines, context, options.rounds)
        if options.only != "times":
            part = ids[: context + (options.windows - 1) * (context // 4)]
            scores = [perplexity(engine_score(e), part, context, context // 4)["perplexity"] for e in engines]
            row["perplexity"] = dict(zip(NAMES, scores, strict=True))
            row["scored_tokens"] = len(part) - 1
        rows.append(before.get(context, {}) | row)
        print(json.dumps(rows[-1]), flush=True)
    spec = engines[1].spec
    matching = [layer for layer in spec.layers if layer.attention_keep]
    doc = {
        "schema": SCHEMA,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join(["bench/bench_sign_decoding.py", *(Path(a).name for a in sys.argv[1:])]),
        "commit": git_commit(),
        "machine": machine(),
        "versions": versions(),
        "threads": options.threads,
        "model": options.dense.name,
        "layers": [len(matching), len(spec.layers)],
        "signs": {
            "keep": matching[0].attention_keep,
            "window": matching[0].sign_window,
            "codes": matching[0].sign_codes,
            "from": matching[0].sign_from,
        },
        "rows": rows,
    }
    options.out.write_text(json.dumps(old | doc, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
