"""Decoding and reading prompts beside llama.cpp, in turns in one process, and perplexity by the same windows.

    pip install llama-cpp-python
    approxrt convert MODEL.gguf --out int8
    approxrt convert MODEL.gguf --out bits5 --bits 5
    approxrt convert MODEL.gguf --out bits5-table6 --bits 5 --table-bits 6
    approxrt convert MODEL.gguf --out bits5-preview --bits 5 --head-preview valid.txt
    approxrt convert MODEL.gguf --out int4 --bits 4
    python bench/bench_generate.py times MODEL.gguf ARTIFACT... --data test.txt --out bench/results/generate.json
    python bench/bench_generate.py perplexity MODEL.gguf ARTIFACT... --data test.txt --out bench/results/generate.json
    python bench/bench_generate.py perplexity MODEL.gguf ARTIFACT... --data test.txt --out bench/results/perplexity.json

`times`: tokens a second of a prompt of 512 tokens and of 64 tokens after 64, one a step, for every engine in turns;
medians with the 20th and 80th percentile; of --data's first tokens, or of random ones. For ours also 8 sequences at
once, all of their tokens counted. `perplexity` adds to the same document: windows of --context tokens that move by
--stride, for all engines the same token ids; what a document has for these windows already is not run again.
`perplexity.json` is of the whole text, which takes an hour or more for some of them, and has no times.
llama.cpp runs the file as it is (its own kernels for its own quantisation).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.benchmark import report
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.tasks.lm import engine_score, perplexity, read_text

SCHEMA = "approxrt.generate/1"
PROMPT, BEFORE, NEW, BATCH = 512, 64, 64, 8


class Ours:
    """An artifact in our engine."""

    def __init__(self, path: Path, threads: int) -> None:
        self.name = f"approxrt:{path.name}"
        artifact = read_artifact(path)
        self.megabytes = sum(array.nbytes for array in artifact.tensors.values()) / 1e6
        self.engine = DecoderEngine(artifact, threads)
        self.score = engine_score(self.engine)

    def prompt(self, ids: list[int]) -> float:
        """Seconds for all of `ids`."""
        cache = self.engine.cache(len(ids))
        begin = time.perf_counter()
        self.engine.prefill(cache, ids)
        return time.perf_counter() - begin

    def decode(self, ids: list[int], sequences: int = 1) -> float:
        """Seconds for NEW steps of so many sequences, each another piece of the ids."""
        pieces = [ids[i * (BEFORE + NEW) :][: BEFORE + NEW] for i in range(sequences)]
        caches = [self.engine.cache(BEFORE + NEW) for _ in pieces]
        for cache, piece in zip(caches, pieces, strict=True):
            self.engine.prefill(cache, piece[:BEFORE])
        begin = time.perf_counter()
        for at in range(BEFORE, BEFORE + NEW):
            logits = self.engine.step(caches, [[piece[at]] for piece in pieces])
            np.argmax(logits, axis=1)
        return time.perf_counter() - begin


class LlamaCpp:
    """The .gguf file in llama.cpp."""

    def __init__(self, path: Path, threads: int, logits_all: bool = False, context: int = 1024) -> None:
        from llama_cpp import Llama

        self.name = "llama.cpp"
        self.megabytes = path.stat().st_size / 1e6
        options = {"n_threads": threads, "n_threads_batch": threads, "n_batch": 512, "verbose": False}
        self.llama = Llama(str(path), n_ctx=context, logits_all=logits_all, **options)

    def prompt(self, ids: list[int]) -> float:
        self.llama.reset()
        begin = time.perf_counter()
        self.llama.eval(ids)
        return time.perf_counter() - begin

    def decode(self, ids: list[int]) -> float:
        self.llama.reset()
        self.llama.eval(ids[:BEFORE])
        begin = time.perf_counter()
        for token in ids[BEFORE : BEFORE + NEW]:
            self.llama.eval([token])
        return time.perf_counter() - begin

    def score(self, ids: list[int], first: int) -> np.ndarray:
        self.llama.reset()
        self.llama.eval(ids)
        return np.array(self.llama.scores[first : len(ids)], np.float32)


def rates(seconds: list[float], tokens: int) -> dict[str, float]:
    """Tokens a second: median, p20, p80."""
    values = tokens / np.array(seconds)
    keys = ("median", "p20", "p80")
    return {key: round(float(np.percentile(values, p)), 1) for key, p in zip(keys, (50, 20, 80), strict=True)}


def times(options: argparse.Namespace) -> dict[str, Any]:
    """All engines in turns."""
    count = max(PROMPT, BATCH * (BEFORE + NEW))
    # A previewed head refines more words of what is no text: then times depend on the ids.
    ids = np.random.default_rng(0).integers(5, 30000, count).tolist()
    if options.data is not None:
        ids = approxrt.load(options.artifacts[0], threads=options.threads).tokenize(read_text(options.data))[:count]
    ours = [Ours(path, options.threads) for path in options.artifacts]
    engines: list[Any] = [*ours, LlamaCpp(options.gguf, options.threads)]
    measured: dict[str, dict[str, list[float]]] = {e.name: {"prompt": [], "decode": [], "batch": []} for e in engines}
    for turn in range(options.rounds + 1):
        for engine in engines:
            found = {"prompt": engine.prompt(ids[:PROMPT]), "decode": engine.decode(ids)}
            if isinstance(engine, Ours):
                found["batch"] = engine.decode(ids, BATCH)
            if turn:  # the first one warms up
                for what, seconds in found.items():
                    measured[engine.name][what].append(seconds)
    rows = []
    for engine in engines:
        of = measured[engine.name]
        row = {"engine": engine.name, "megabytes": round(engine.megabytes, 1)}
        row |= {"prompt": rates(of["prompt"], PROMPT), "decode": rates(of["decode"], NEW)}
        if of["batch"]:
            row["batch"] = rates(of["batch"], NEW * BATCH)
        rows.append(row)
    sizes = {
        "ids": "random" if options.data is None else options.data.name,
        "prompt_tokens": PROMPT,
        "before": BEFORE,
        "new_tokens": NEW,
        "batch": BATCH,
        "rounds": options.rounds,
    }
    return {"rows": rows, "sizes": sizes}


def perplexities(options: argparse.Namespace, doc: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Of all engines, on the first tokens of the text as the first artifact's tokenizer sees it.

    What is new after each engine; those that `doc` has for the same windows and weights are not run again.
    """
    model: Any = approxrt.load(options.artifacts[0], threads=options.threads)
    ids = model.tokenize(read_text(options.data))[: options.tokens]
    del model
    windows = {"data": options.data.name, "tokens": len(ids), "context": options.context, "stride": options.stride}
    same = doc.get("windows") == windows
    keys = ("perplexity", "megabytes", "weights")
    found, sizes, weights = (dict(doc.get(key, {})) if same else {} for key in keys)
    makers: list[tuple[str, Path, Callable[[], Any]]] = [
        (f"approxrt:{path.name}", path / "model.safetensors", lambda path=path: Ours(path, options.threads))
        for path in options.artifacts
    ]
    if options.peer:
        make_peer = partial(LlamaCpp, options.gguf, options.threads, True, options.context)
        makers.append(("llama.cpp", options.gguf, make_peer))
    for name, file, make in makers:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        if name not in found or weights.get(name) != digest:
            engine = make()
            found[name] = perplexity(engine.score, ids, options.context, options.stride)["perplexity"]
            sizes[name] = round(engine.megabytes, 1)
            weights[name] = digest
            print(name, found[name], flush=True)
            del engine
        yield {"perplexity": found, "megabytes": sizes, "weights": weights, "windows": windows}


def write(doc: dict[str, Any], out: Path) -> None:
    """Whole or not at all: another engine may take an hour, and what is there is not lost."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}")
    temporary.write_text(json.dumps(doc, indent=1) + "\n", encoding="utf-8")
    temporary.replace(out)


def main() -> None:
    """Measure, and put it into the document."""
    parser = argparse.ArgumentParser(description="Generation beside llama.cpp")
    parser.add_argument("what", choices=("times", "perplexity"))
    parser.add_argument("gguf", type=Path, help="the model for llama.cpp")
    parser.add_argument("artifacts", type=Path, nargs="+", help="artifacts of the same model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path, help="a text file; times: random ids without it")
    parser.add_argument("--tokens", type=int, default=None, help="perplexity: only the text's first tokens")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--stride", type=int, default=256)
    parser.add_argument("--no-peer", dest="peer", action="store_false", help="perplexity: leave llama.cpp out")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    doc: dict[str, Any] = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    if options.what == "times":
        versions = report.versions()
        import importlib.metadata

        versions["llama-cpp-python"] = importlib.metadata.version("llama-cpp-python")
        doc |= {
            "schema": SCHEMA,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "command": shlex.join(["bench/bench_generate.py", *(Path(a).name for a in sys.argv[1:])]),
            "commit": report.git_commit(),
            "machine": report.machine(),
            "versions": versions,
            "model": options.gguf.name,
            "threads": options.threads,
            **times(options),
        }
    else:
        if options.data is None:
            parser.error("perplexity needs --data")
        doc |= {"schema": SCHEMA, "model": options.gguf.name} if "rows" not in doc else {}
        for new in perplexities(options, doc):
            doc |= new
            write(doc, options.out)
    write(doc, options.out)
    print(json.dumps(doc.get("rows" if options.what == "times" else "perplexity"), indent=1))


if __name__ == "__main__":
    main()
