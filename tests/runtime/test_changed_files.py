"""What becomes of an artifact's files once it is loaded changes no answer, and ends no process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import decoder_tokenizer, small_decoder_spec
from families import build_tokenizer
from paths import ROOT
from specs import random_tensors, small_spec

import approxrt
from approxrt.artifact import copied, reader
from approxrt.artifact.copied import CopiedFile, Pieces
from approxrt.artifact.files import UnsuitableFile
from approxrt.artifact.mapped import MappedFile
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError
from approxrt.runtime.cpu.engine import CpuEngine

WEIGHTS = "model.safetensors"
# Rows enough that tables cross many pages: most are untouched when the file changes.
ROWS = 4000
KINDS = ("f32", "s8", "s4", "g4", "g8")


def encoder(folder: Path, kind: str = "s8", seed: int = 0, **options: Any) -> Path:
    spec = small_spec(kind, hidden=64, **{"vocab_size": ROWS, "max_positions": 300, "max_length": 300, **options})
    return write_artifact(folder, spec, random_tensors(spec, seed), build_tokenizer("bert").to_str().encode(), {})


def decoder(folder: Path, kind: str = "s8", seed: int = 0) -> Path:
    spec = small_decoder_spec(kind, hidden=64, vocab_size=ROWS, max_positions=128)
    tokenizer = decoder_tokenizer().to_str().encode()
    return write_artifact(folder, spec, random_tensors(spec, seed), tokenizer, {})


def overwrite(path: Path, data: bytes) -> None:
    """As `cp` does: the file keeps its inode."""
    with open(path, "r+b") as file:
        file.write(data)
        file.truncate()


def other_bytes(folder: Path) -> None:
    for name in (WEIGHTS, "tokenizer.json", "config.json", "card.json"):
        data = (folder / name).read_bytes()
        overwrite(folder / name, bytes(byte ^ 0x15 for byte in data))


def same_bytes(folder: Path) -> None:
    """Cut to nothing first, as a shell's redirection does."""
    data = (folder / WEIGHTS).read_bytes()
    os.truncate(folder / WEIGHTS, 0)
    overwrite(folder / WEIGHTS, data)


def cut(folder: Path) -> None:
    for name in (WEIGHTS, "tokenizer.json", "config.json", "card.json"):
        os.truncate(folder / name, 0)


def replaced(folder: Path) -> None:
    (folder / "new").write_bytes(b"something else")
    os.replace(folder / "new", folder / WEIGHTS)


CHANGES: dict[str, Callable[[Path], object]] = {
    "other bytes": other_bytes,
    "same bytes": same_bytes,
    "cut": cut,
    "replaced": replaced,
    "removed": shutil.rmtree,
}


def all_rows() -> list[np.ndarray]:
    return np.array_split(np.arange(ROWS), 20)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_encoders_answers_stay(tmp_path: Path, kind: str, change: str) -> None:
    path = encoder(tmp_path / "a", kind)
    expected = CpuEngine(read_artifact(path), 2).forward(all_rows(), None, "logits")
    model = approxrt.load(path, threads=2)
    before, info = model.logits(["a gripping film", "good"]), model.info
    CHANGES[change](path)
    np.testing.assert_array_equal(model.forward(all_rows()), expected)
    np.testing.assert_array_equal(model.logits(["a gripping film", "good"]), before)
    assert model.info.keys() == info.keys() and model.info["bytes"] == info["bytes"]
    assert model.info["linears"] == info["linears"]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_decoders_answers_stay(tmp_path: Path, kind: str, change: str) -> None:
    path = decoder(tmp_path / "a", kind)
    model, other = approxrt.load(path, threads=2), approxrt.load(path, threads=2)
    expected = [other.forward([ids[:100]]) for ids in all_rows()]
    text = other.generate("hello", 20)
    CHANGES[change](path)
    for ids, logits in zip(all_rows(), expected, strict=True):
        np.testing.assert_array_equal(model.forward([ids[:100]]), logits)
    assert model.generate("hello", 20) == text


def test_tiles_are_known_without_the_weights(tmp_path: Path) -> None:
    path = encoder(tmp_path / "a", "bsr_s8", embedding_kind="s8")
    expected = approxrt.load(path).info
    model = approxrt.load(path)
    shutil.rmtree(path)
    assert model.info["linears"] == expected["linears"] and model.info["layer_density"] == expected["layer_density"]


CHILD = """
import os, sys
import approxrt
model = approxrt.load(sys.argv[1], threads=1, mmap=sys.argv[2] == "mmap")
os.truncate(sys.argv[1] + "/model.safetensors", 0)
print(model.forward([list(range(3000, 3200))]).shape, flush=True)
"""


@pytest.mark.parametrize("how", ["copied", "mmap"])
def test_mmap_is_what_it_says(tmp_path: Path, how: str) -> None:
    """The default survives what ends a process that was told to read the file where it lies."""
    command = [sys.executable, "-c", CHILD, str(encoder(tmp_path / "a")), how]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == ((0, "(1, 2)\n") if how == "copied" else (-7, ""))


def test_what_was_hashed_is_what_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are overwritten at the last moment: while the tensors are checked."""
    path = encoder(tmp_path / "a", seed=1)
    expected = approxrt.load(path, threads=1).forward(all_rows())
    check, done = reader.tensor_faults, []

    def meanwhile(*args: Any) -> list[str]:
        other_bytes(path)
        done.append(True)
        return check(*args)

    monkeypatch.setattr(reader, "tensor_faults", meanwhile)
    np.testing.assert_array_equal(approxrt.load(path, threads=1).forward(all_rows()), expected)
    assert done
    with pytest.raises(ArtifactError):
        approxrt.load(path)


def test_a_file_that_is_cut_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encoder(tmp_path / "a")
    real = copied.parse_header

    def cutting(*args: Any) -> Any:
        os.truncate(path / WEIGHTS, 10_000)
        return real(*args)

    monkeypatch.setattr(copied, "parse_header", cutting)
    file = CopiedFile(path / WEIGHTS)
    with pytest.raises(UnsuitableFile, match="is cut while it is read"):
        len(file.buffer)
    assert file.sha256() == ""
    with pytest.raises(ArtifactError, match=r"model\.safetensors has 10000 bytes"):
        approxrt.load(path)


def test_an_early_file_that_was_written_to_is_read_again(tmp_path: Path) -> None:
    """The same inode and size, other content: what was read first would not match config.json."""
    path, other = encoder(tmp_path / "a", seed=1), encoder(tmp_path / "b", seed=2)
    early = CopiedFile(path / WEIGHTS)
    early.sha256()
    for name in (WEIGHTS, "config.json"):
        overwrite(path / name, (other / name).read_bytes())
    os.utime(path / WEIGHTS, (1, 1))
    np.testing.assert_array_equal(
        read_artifact(path, early).tensors["embeddings.word.q"], read_artifact(other).tensors["embeddings.word.q"]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_copied_and_mapped_tensors_are_the_same(tmp_path: Path, kind: str) -> None:
    path = encoder(tmp_path / "a", kind)
    ours, theirs = read_artifact(path).tensors, read_artifact(path, mmap=True).tensors
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])
        assert array.flags.aligned and not array.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_pieces_are_the_bytes(tmp_path: Path) -> None:
    path = encoder(tmp_path / "a") / WEIGHTS
    data, file = path.read_bytes(), CopiedFile(path)
    pieces = file.buffer
    assert isinstance(pieces, Pieces) and len(pieces) == len(data) and len(pieces.writable) > 2
    assert b"".join(pieces.writable) == data
    with pytest.raises(ValueError, match="lie in several pieces"):
        pieces[0 : len(data)]
    assert bytes(pieces[5:5]) == b""
    assert file.sha256() == MappedFile(path).sha256()


def test_a_file_larger_than_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encoder(tmp_path / "a")
    size = (path / WEIGHTS).stat().st_size
    monkeypatch.setattr(copied, "available_memory", lambda: size - 1)
    with pytest.raises(ArtifactError, match=f"has {size} bytes, and {size - 1} bytes of memory are left: .*mmap=True"):
        approxrt.load(path)
    approxrt.load(path, mmap=True)
    monkeypatch.undo()
    available = copied.available_memory()
    assert available is None or available > 1 << 20


MEMORY = """
import sys
import approxrt
def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1e3
approxrt.load(sys.argv[1], threads=1)  # what code and libraries take
before = resident()
model = approxrt.load(sys.argv[2], threads=1)
print(resident() - before, model.info["packed_weight_bytes"] / 1e6, model.info["bytes"]["embeddings"] / 1e6)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_that_of_packed_weights_and_tables(tmp_path: Path) -> None:
    """Of what was read only the tables stay: the weights are not held twice."""
    small, large = encoder(tmp_path / "small"), tmp_path / "large"
    spec = small_spec("s8", hidden=2048, vocab_size=ROWS, max_positions=64, max_length=64)
    write_artifact(large, spec, random_tensors(spec), build_tokenizer("bert").to_str().encode(), {})
    command = [sys.executable, "-c", MEMORY, str(small), str(large)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    grown, packed, tables = map(float, done.stdout.split())
    assert packed > 15 and tables > 7
    assert tables + packed < grown < tables + packed + 6
