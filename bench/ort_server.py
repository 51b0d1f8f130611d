"""The peer of bench_serving.py: what one writes in an afternoon, FastAPI around ONNX Runtime's int8 model.

One sentence a pass, on a thread of FastAPI's pool, so that the event loop stays free; uvicorn with its fast parts.
"""

from __future__ import annotations

import argparse
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from tokenizers import Tokenizer


class Body(BaseModel):
    inputs: str


def build(folder: Path, threads: int) -> FastAPI:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    labels = json.loads((folder / "config.json").read_text())["id2label"]
    app = FastAPI()

    @app.post("/predict")
    def predict(body: Body) -> list[dict[str, Any]]:
        ids = np.array([tokenizer.encode(body.inputs).ids], np.int64)
        logits = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
        return [{"label": labels[str(i)], "score": float(scores[i])} for i in np.argsort(-scores).tolist()]

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    listening = socket.create_server(("127.0.0.1", 0))
    app = build(args.folder, args.threads)

    @app.router.on_event("startup")
    def ready() -> None:
        print(json.dumps({"url": f"http://127.0.0.1:{listening.getsockname()[1]}"}), flush=True)

    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


if __name__ == "__main__":
    main()
