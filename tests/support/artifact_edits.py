"""Write a small artifact, and edit its files as a stranger might."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from specs import TOKENIZER_JSON, random_tensors, small_spec

from approxrt.artifact.writer import write_artifact

CARD = {"source": "test", "accuracy": None}


def write(path: Path, kind: str = "bsr_s8", seed: int = 0, **kwargs) -> Path:
    spec = small_spec(kind)
    return write_artifact(path, spec, random_tensors(spec, seed), TOKENIZER_JSON, CARD, **kwargs)


def edit_config(folder: Path, edit: Callable[[dict], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Change tensors and record the new size and checksum, as a hostile author would."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, folder / "model.safetensors")
    seal(folder, "model.safetensors")


def seal(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit_config(folder, lambda c: c["files"].update({name: entry}))


def set_value(name: str, index: object, value: float) -> Callable[[Path], None]:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name][index] = value

    return lambda folder: edit_tensors(folder, edit)


def replace_tensor(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder, lambda t: t.update({name: change(t[name])}))


UP = "layers.0.ffn.up"  # 40 -> 51: 10 tile columns, 4 strips, 3 rows in the last


DOWN = "layers.0.ffn.down"  # 51 -> 40: 13 tile columns of which the last has 3 inputs


def rewrite_tokenizer(source: Path, target: Path, edit: Callable[[dict], object]) -> Path:
    """Copy an artifact with a changed tokenizer.json, whose checksum is recorded."""
    shutil.copytree(source, target)
    tokenizer = json.loads((target / "tokenizer.json").read_text())
    edit(tokenizer)
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    seal(target, "tokenizer.json")
    return target
