"""Files that make a naive reader wait, read for ever, or ask for more memory than there is."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from artifact_edits import edit_config, seal, write
from bounded import assert_refused, run_bounded

from approxrt.artifact.files import (
    MAX_JSON_DEPTH,
    UnsuitableFile,
    open_large,
    open_regular,
    parse_json,
    read_bounded,
    read_text,
)
from approxrt.artifact.header import header_length, parse_header

GIANT = 200_000_000_000
WEIGHTS = "model.safetensors"


def fifo(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def bound_socket(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    here = os.getcwd()
    os.chdir(folder)  # a socket's path may have some 100 characters
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(WEIGHTS)
    finally:
        os.chdir(here)


def device(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")

    return change


def giant(name: str, recorded: bool = False) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        os.truncate(folder / name, GIANT)
        if recorded:
            edit_config(folder, lambda c: c["files"][name].update(size=GIANT))

    return change


def giant_tensor(folder: Path) -> None:
    """A sparse file whose header accounts for every byte."""
    entry = {"dtype": "I8", "shape": [GIANT], "data_offsets": [0, GIANT]}
    header = json.dumps({"embeddings.word.q": entry}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(folder / WEIGHTS, 8 + len(header) + GIANT)
    edit_config(folder, lambda c: c["files"][WEIGHTS].update(size=8 + len(header) + GIANT))


def header(length: int, content: bytes = b"") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(length.to_bytes(8, "little") + content)
        os.truncate(folder / WEIGHTS, 8 + length)
        seal(folder, WEIGHTS)

    return change


def config_text(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "config.json").read_text()
        assert old in text
        (folder / "config.json").write_text(text.replace(old, new))

    return change


def whole(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


MANY = b"[" + b"[]," * 5_000_000 + b"0]"
CASES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"{name} is a FIFO": (fifo(name), f"{name} is not a regular file") for name in (WEIGHTS, "config.json")},
    "tokenizer.json is a FIFO": (fifo("tokenizer.json"), "tokenizer.json is not a regular file"),
    "card.json is a FIFO": (fifo("card.json"), "card.json is not a regular file"),
    "the weights are a socket": (bound_socket, f"{WEIGHTS} is not a regular file"),
    "the weights are a device": (device(WEIGHTS), f"{WEIGHTS} is not a regular file"),
    "config.json is a device": (device("config.json"), "config.json is not a regular file"),
    "sparse weights": (giant(WEIGHTS), f"{WEIGHTS} has {GIANT} bytes, config.json says"),
    "sparse weights that config.json knows": (giant(WEIGHTS, True), f"{WEIGHTS} is sparse"),
    "sparse weights with a header": (giant_tensor, f"{WEIGHTS} is sparse"),
    "sparse config.json": (giant("config.json"), "config.json is sparse"),
    "sparse tokenizer.json": (giant("tokenizer.json"), "tokenizer.json is sparse"),
    "sparse card.json": (giant("card.json"), "card.json is sparse"),
    "a config of 20 MB": (whole("config.json", bytes(20 << 20)), "config.json has 20971520 bytes; the limit is"),
    "a header of 100 MB": (header(100_000_000), "its header has 100000000 bytes; the limit is"),
    "a header of 15 million values": (header(len(MANY), MANY), "values; the limit is"),
    "a name of 2 MB": (
        header(2_000_052, b'{"' + 2_000_000 * b"n" + b'":{"dtype":"I8","shape":[0],"data_offsets":[0,0]}}'),
        "its name has 2000000 characters; the limit is",
    ),
    "a config of 10 million values": (whole("config.json", MANY), "values; the limit is"),
    "a card of 10 million values": (whole("card.json", MANY), "values; the limit is"),
    "an epsilon of 401 digits": (config_text("1e-12", "1" + 400 * "0"), "layer_norm_eps is 1000"),
    "an epsilon of 5000 digits": (config_text("1e-12", "1" + 5000 * "0"), "config.json is not valid JSON"),
    "a size of 4000 digits": (config_text('"vocab_size": 30', '"vocab_size": ' + 4000 * "9"), "vocab_size is 9999"),
    "heads of 4000 digits": (
        config_text('"num_heads": 2', '"num_heads": ' + 4000 * "9"), "num_heads * head_dim is",
    ),
    "a version of 4000 digits": (
        config_text('"format_version": 1', '"format_version": ' + 4000 * "9"), "upgrade approxrt",
    ),
    "a recorded size of 4000 digits": (
        lambda f: edit_config(f, lambda c: c["files"][WEIGHTS].update(size=int(4000 * "9"))), "config.json says 9999",
    ),
    "offsets of 4000 digits": (
        header(5000, (b'{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,' + 4000 * b"9" + b"]}}").ljust(5000)),
        "its data_offsets are not two offsets from 0 to",
    ),
}  # fmt: skip


def test_artifacts_are_refused_at_once(tmp_path: Path) -> None:
    sound = write(tmp_path / "sound")
    cases = {}
    for i, (name, (change, _)) in enumerate(CASES.items()):
        cases[name] = tmp_path / str(i)
        shutil.copytree(sound, cases[name])
        change(cases[name])
    parts = {name: part for name, (_, part) in CASES.items()}
    assert_refused(run_bounded("lambda path: load(path, threads=1)", cases), "ArtifactError", parts)
    assert_refused(run_bounded("lambda path: load(path, threads=1, mmap=True)", cases), "ArtifactError", parts)


def test_a_fifo_that_comes_late_is_no_trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at a file and its opening another may take its place: opening does not wait."""
    regular = tmp_path / "file"
    regular.write_bytes(b"x")
    before = os.stat(regular)
    regular.unlink()
    os.mkfifo(regular)
    monkeypatch.setattr(os, "stat", lambda *_: before)
    with pytest.raises(UnsuitableFile, match="is a FIFO, not a regular file"):
        open_regular(regular)


def test_kinds_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnsuitableFile, match="is a folder"):
        open_regular(tmp_path)
    with pytest.raises(UnsuitableFile, match="is a device"):
        open_regular("/dev/null")
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "none")


def test_a_file_with_some_holes_is_read(tmp_path: Path) -> None:
    """cp --sparse and rsync -S make holes of zeros, and small files may be anything."""
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.write(bytes(100_000))
        file.truncate(1_000_000)
    assert len(read_bounded(path)) == 1_000_000
    with open(path, "wb") as file:
        for _ in range(5):
            file.seek(60_000_000, os.SEEK_CUR)
            file.write(os.urandom(20_000_000))
    with open_large(path) as file:
        assert file.seek(0, os.SEEK_END) == 400_000_000


def test_the_limit_is_the_last_size_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    assert read_bounded(tmp_path / "file", 100) == bytes(100)
    with pytest.raises(UnsuitableFile, match="has 100 bytes; the limit is 99"):
        read_bounded(tmp_path / "file", 99)


def test_text_has_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes("a\r\nb\rc\nä".encode())
    assert read_text(tmp_path / "file") == (tmp_path / "file").read_text(encoding="utf-8") == "a\nb\nc\nä"


def test_nesting_and_values_are_bounded() -> None:
    deepest = b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH
    assert parse_json(deepest)
    for raw in (b"[" + deepest + b"]", b'{"a":' * 65 + b"1" + b"}" * 65, b"[" * 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(raw)
    assert parse_json(b"[1, 2]", 2) == [1, 2]
    with pytest.raises(ValueError, match="about 3 values; the limit is 2"):
        parse_json(b"[1, 2, 3]", 2)
    with pytest.raises(ValueError, match="NaN is not JSON"):
        parse_json(b"[NaN]")


def test_a_header_of_a_large_model_is_read() -> None:
    """91,000 tensors in one file: a mixture of 256 experts in 60 layers."""
    size = 64
    entries = {
        f"model.layers.{i // 1536}.mlp.experts.{i % 1536}.down_proj.weight": {
            "dtype": "BF16", "shape": [4, 8], "data_offsets": [i * size, (i + 1) * size]
        }
        for i in range(91_000)
    }  # fmt: skip
    raw = json.dumps(entries).encode()
    total = 8 + len(raw) + size * len(entries)
    start = len(raw).to_bytes(8, "little")
    assert header_length("file", start, total) == len(raw)
    read = parse_header("file", raw, total)
    assert len(read.entries) == len(entries) and not read.faults
