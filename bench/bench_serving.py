"""Requests a second over loopback: `approxrt serve` beside a plain FastAPI server around ONNX Runtime's int8 model.

    python bench/bench_serving.py load ARTIFACT --checkpoint checkpoint/ --texts SST-2/dev.tsv --out serving.json
    python bench/bench_serving.py fairness ARTIFACT --texts SST-2/dev.tsv --out serving-fairness.json
    python bench/bench_serving.py soak ARTIFACT --texts SST-2/dev.tsv --seconds 600 --hostile

Each server is a process of its own; so is the load: connections that are kept open, each with one request under way,
one sentence a request. The load takes part of the same cores, for both servers alike: a share of the bare engine's
throughput (all sentences in one call, tokenised) counts that part as lost.

`fairness` measures single sentences of one client, alone and beside another that sends requests of 1,024 texts without
end, and how long `/health` takes meanwhile.

`soak` mixes good requests (every answer is checked against its sentence) with bad ones (each must be a 4xx that says
why) and with clients that hang up, and watches the server's memory; with --hostile beside clients that attack it
(serving_attacks.py).
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import serving_attacks as attacks
import uvloop
from serving_attacks import request

HERE = Path(__file__).resolve().parent
CLIENTS = (1, 8, 64)
MAX_GROWTH = 0.10
WARM_S = 1.0


def read_texts(path: Path) -> list[str]:
    """The first column named `sentence` (or `text`) of a tab-separated file."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        column = next(name for name in (rows.fieldnames or []) if name in ("sentence", "text"))
        return [row[column].strip() for row in rows]


@contextmanager
def server(command: list[str]) -> Iterator[tuple[int, int]]:
    """(port, process id) of a server that prints its address as JSON once it is ready."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        about = ""
        while about.count("{") != about.count("}") or not about.strip():
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"{' '.join(command)} has ended with {process.wait()}")
            about += line
        yield int(json.loads(about)["url"].rsplit(":", 1)[1]), process.pid
    finally:
        process.terminate()
        process.wait(30)


def ours(artifact: Path, threads: int) -> list[str]:
    program = "from approxrt.cli.main import main; main()"
    options = ["--port", "0", "--json", "--threads", str(threads), "--log-level", "warning"]
    return [sys.executable, "-c", program, "serve", f"model={artifact}", *options]


def theirs(folder: Path, threads: int) -> list[str]:
    return [sys.executable, str(HERE / "ort_server.py"), str(folder), "--threads", str(threads)]


# -- the load ---------------------------------------------------------------------


class Connection:
    """One kept-open connection with one request under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def open(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, raw: bytes) -> tuple[int, bytes]:
        self.writer.write(raw)
        head = await self.reader.readuntil(b"\r\n\r\n")
        status = int(head[9:12])
        start = head.lower().index(b"content-length:") + 15
        body = await self.reader.readexactly(int(head[start : head.index(b"\r\n", start)]))
        return status, body


async def load(port: int, texts: list[str], clients: int, seconds: float) -> dict[str, float]:
    """requests_s, p50_ms and p99_ms."""
    raws = [request("/predict", json.dumps({"inputs": text}).encode()) for text in texts]
    connections = [await Connection.open(port) for _ in range(clients)]
    times: list[float] = []
    begin = time.perf_counter() + WARM_S
    end = begin + seconds

    async def client(number: int) -> None:
        place = number * 97
        while (now := time.perf_counter()) < end:
            status, _ = await connections[number].ask(raws[place % len(raws)])
            if status != 200:
                raise SystemExit(f"the server answers {status}")
            if now >= begin:
                times.append(time.perf_counter() - now)
            place += 1

    await asyncio.gather(*(client(i) for i in range(clients)))
    for connection in connections:
        connection.writer.close()
    p50, p99 = (float(x) * 1e3 for x in np.percentile(times, (50, 99)))
    return {"requests_s": len(times) / seconds, "p50_ms": p50, "p99_ms": p99}


def bare(artifact: Path, texts: list[str], threads: int, seconds: float) -> float:
    """Sentences a second of `classify` on all of them in one call."""
    import approxrt

    model = approxrt.load(artifact, threads=threads)
    model.classify(texts)
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        model.classify(texts)
        count += len(texts)
    return count / (time.perf_counter() - begin)


def run_load(args: argparse.Namespace) -> dict[str, Any]:
    from approxrt.benchmark import report

    texts = read_texts(args.texts)
    rows: list[dict[str, Any]] = []
    engine: list[float] = []
    with tempfile.TemporaryDirectory() as work:
        commands = {"approxrt serve": ours(args.artifact, args.threads)}
        if args.checkpoint is not None:
            commands["FastAPI + ONNX Runtime int8"] = theirs(ort_folder(args.checkpoint, Path(work)), args.threads)
        for turn in range(args.rounds):
            engine.append(bare(args.artifact, texts, args.threads, args.seconds / 2))
            for name, command in commands.items():
                with server(command) as (port, _):
                    for clients in CLIENTS:
                        found = uvloop.run(load(port, texts, clients, args.seconds))
                        rows.append({"server": name, "clients": clients, "round": turn, **found})
                        print(rows[-1], file=sys.stderr)
    median = float(np.median(engine))
    return {
        "schema": "approxrt.serving/1",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"bench_serving.py load {args.artifact.name} --checkpoint DIR --texts {args.texts.name} "
        f"--seconds {args.seconds:g} --rounds {args.rounds}",
        "commit": report.git_commit(),
        "machine": report.machine(),
        "versions": report.versions(),
        "threads": args.threads,
        "texts": len(texts),
        "bare_engine_texts_s": median,
        "rows": [summary(rows, name, clients, median) for name in commands for clients in CLIENTS],
    }


def summary(rows: list[dict[str, Any]], name: str, clients: int, engine: float) -> dict[str, Any]:
    """Medians over rounds."""
    chosen = [row for row in rows if row["server"] == name and row["clients"] == clients]
    values = {key: float(np.median([row[key] for row in chosen])) for key in ("requests_s", "p50_ms", "p99_ms")}
    return {"server": name, "clients": clients, **values, "share_of_engine": values["requests_s"] / engine}


def ort_folder(checkpoint: Path, work: Path) -> Path:
    """model.onnx (int8), tokenizer.json and config.json."""
    from approxrt.peers import onnxruntime_engine
    from approxrt.peers.source import Source

    folder = work / "onnxruntime"
    folder.mkdir()
    shutil.copy(onnxruntime_engine.prepare("int8", Source(checkpoint), work), folder / "model.onnx")
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(checkpoint / name, folder)
    return folder


# -- fairness -------------------------------------------------------------------


async def percentiles(port: int, raws: list[bytes], seconds: float) -> dict[str, float]:
    """p50_ms and p99_ms of requests, one after the other on one connection."""
    connection, times = await Connection.open(port), []
    end = time.perf_counter() + seconds
    while (begin := time.perf_counter()) < end:
        status, _ = await connection.ask(raws[len(times) % len(raws)])
        if status != 200:
            raise SystemExit(f"the server answers {status}")
        times.append(time.perf_counter() - begin)
    connection.writer.close()
    p50, p99 = (float(x) * 1e3 for x in np.percentile(times, (50, 99)))
    return {"requests": len(times), "p50_ms": p50, "p99_ms": p99}


async def fairness(port: int, texts: list[str], seconds: float) -> dict[str, Any]:
    """Measure single sentences and /health, alone and beside a flood from the same address."""
    raws = [request("/predict", json.dumps({"inputs": text}).encode()) for text in texts]
    health = [b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"]
    alone = await percentiles(port, raws, seconds)
    found: dict[str, Any] = {"alone": alone, "beside": {}}
    floods = {
        "1024 long texts a request": json.dumps({"inputs": [["film " * 505]] * 1024, "truncate": True}).encode(),
        "1024 sentences a request": json.dumps({"inputs": [[text] for text in (texts * 2)[:1024]]}).encode(),
    }
    for name, body in floods.items():
        stop = asyncio.Event()

        async def flood(raw: bytes, stop: asyncio.Event) -> None:
            connection = await Connection.open(port)
            while not stop.is_set():
                await connection.ask(raw)

        flooding = asyncio.create_task(flood(request("/predict", body), stop))
        await asyncio.sleep(1.0)
        beside = await percentiles(port, raws, seconds)
        asked = await percentiles(port, health, seconds / 2)
        ratios = {key: beside[key] / alone[key] for key in ("p50_ms", "p99_ms")}
        found["beside"][name] = {**beside, "over_alone": ratios, "health_p99_ms": asked["p99_ms"]}
        stop.set()
        flooding.cancel()
        await asyncio.sleep(2.0)
    return found


def run_fairness(args: argparse.Namespace) -> dict[str, Any]:
    from approxrt.benchmark import report

    texts = read_texts(args.texts)
    with server(ours(args.artifact, args.threads)) as (port, _):
        found = uvloop.run(fairness(port, texts, args.seconds))
    return {
        "schema": "approxrt.fairness/1",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"bench_serving.py fairness {args.artifact.name} --texts {args.texts.name} "
        f"--seconds {args.seconds:g}",
        "commit": report.git_commit(),
        "machine": report.machine(),
        "versions": report.versions(),
        "threads": args.threads,
        **found,
    }


# -- the soak ---------------------------------------------------------------------

BAD = (
    ("/predict", b"{"),
    ("/predict", b'{"inputs": 5}'),
    ("/predict", b'{"inputs": []}'),
    ("/predict", b'{"inputs": "a", "model": 7}'),
    ("/predict", b'{"inputs": [["a", "b", "c"]]}'),
    ("/embed", b'{"inputs": [-1]}'),
    ("/v1/embeddings", b'{"input": "a", "dimensions": -1}'),
    ("/v2/models/nobody/infer", b"{}"),
    ("/v2/models/model/infer", b'{"inputs": [{"name": "text"}]}'),
    ("/nowhere", b"{}"),
)


def resident(pid: int) -> int:
    """Bytes of a process's resident memory."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


async def soak(port: int, pid: int, texts: list[str], answers: list[Any], args: argparse.Namespace) -> dict[str, Any]:
    """Counts, and memory after the first tenth of the time and at the end."""
    counts = {"good": 0, "bad": 0, "hung_up": 0, "crossed": 0, "lost": 0, "bad_without_reason": 0}
    end = time.perf_counter() + args.seconds
    rng, times = random.Random(0), list[float]()

    async def client() -> None:
        connection = await Connection.open(port)
        while time.perf_counter() < end:
            kind = rng.random()
            if kind < 0.02:  # ask and go
                connection.writer.write(request("/predict", json.dumps({"inputs": rng.choice(texts)}).encode()))
                await asyncio.sleep(0)
                connection.writer.close()
                connection = await Connection.open(port)
                counts["hung_up"] += 1
                continue
            try:
                if kind < 0.2:
                    path, body = rng.choice(BAD)
                    status, content = await connection.ask(request(path, body))
                    counts["bad"] += 1
                    counts["bad_without_reason"] += not (400 <= status < 500 and len(content) > 10)
                    continue
                i = rng.randrange(len(texts))
                count = rng.choice((1, 1, 1, 4))
                places = [(i + j) % len(texts) for j in range(count)]
                raw = request("/predict", json.dumps({"inputs": [[texts[p]] for p in places]}).encode())
                asked = time.perf_counter()
                status, content = await connection.ask(raw)
                times.append(time.perf_counter() - asked)
                counts["good"] += 1
                got = json.loads(content)
                counts["crossed"] += status != 200 or [row[0] for row in got] != [answers[p] for p in places]
            except (OSError, asyncio.IncompleteReadError):
                counts["lost"] += 1
                connection = await Connection.open(port)

    async def watch() -> list[int]:
        series = []
        for i in range(1, 21):
            await asyncio.sleep(max(0.0, end - args.seconds * (1 - i / 20) - time.perf_counter() - 0.2))
            series.append(resident(pid))
        return series

    attacked: dict[str, int] = {}
    hostile = asyncio.get_running_loop().time() + args.seconds
    others = [attacks.attack_until(port, hostile, attacked) for _ in range(2 if args.hostile else 0)]
    memory, *_ = await asyncio.gather(watch(), *(client() for _ in range(args.clients)), *others)
    waits = dict(zip(("p50_ms", "p99_ms", "longest_ms"), np.percentile(times, (50, 99, 100)) * 1e3, strict=True))
    return {
        **counts,
        **{key: float(value) for key, value in waits.items()},
        "attacks": attacked,
        "early_bytes": memory[1],
        "late_bytes": memory[-1],
        "growth": memory[-1] / memory[1] - 1,
        "resident_bytes": memory,
    }


def run_soak(args: argparse.Namespace) -> dict[str, Any]:
    import approxrt

    texts = read_texts(args.texts)
    best = approxrt.load(args.artifact, threads=args.threads).classify(texts)
    answers = [{"score": row[0].score, "label": row[0].label} for row in best]
    with server(ours(args.artifact, args.threads)) as (port, pid):
        found = uvloop.run(soak(port, pid, texts, answers, args))
    wrong = {name: found[name] for name in ("crossed", "lost", "bad_without_reason") if found[name]}
    if wrong or found["growth"] > MAX_GROWTH:
        raise SystemExit(f"the soak fails: {json.dumps(found)}")
    from approxrt.benchmark import report

    return {
        "schema": "approxrt.soak/1",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": f"bench_serving.py soak {args.artifact.name} --texts {args.texts.name} --seconds {args.seconds:g}",
        "commit": report.git_commit(),
        "machine": report.machine(),
        "versions": report.versions(),
        "seconds": args.seconds,
        "clients": args.clients,
        **found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "fairness", "soak"))
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--texts", type=Path, required=True, help="a .tsv with a column sentence or text")
    parser.add_argument("--checkpoint", type=Path, help="what ONNX Runtime's int8 model is made from")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", type=int, default=16, help="of a soak")
    parser.add_argument("--hostile", action="store_true", help="attack the server during a soak")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    document = {"load": run_load, "fairness": run_fairness, "soak": run_soak}[args.what](args)
    text = json.dumps(document, indent=1) + "\n"
    if args.out is None:
        print(text, end="")
    else:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
