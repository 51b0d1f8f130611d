"""Loading: what runs beside what, that nothing unchecked gets through, and what stays in memory."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from families import build_tokenizer
from paths import ROOT
from specs import random_tensors, small_spec

import approxrt
from approxrt.artifact.mapped import MappedFile
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError
from approxrt.runtime.cpu.engine import CpuEngine

WEIGHTS = "model.safetensors"


def write(folder: Path, seed: int = 0, kind: str = "s8", **options) -> Path:
    tokenizer = build_tokenizer("bert")
    spec = small_spec(kind, **{"vocab_size": tokenizer.get_vocab_size(), **options})
    data = tokenizer.to_str().encode()
    return write_artifact(folder, spec, random_tensors(spec, seed), data, {}, overwrite=True)


def test_a_mapped_file_knows_its_hash(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(data)
    mapped = MappedFile(tmp_path / "file")
    assert (mapped.size, mapped.sha256()) == (len(data), hashlib.sha256(data).hexdigest())
    mapped.release_pages()
    assert mapped.buffer[:] == data  # released pages come back
    (tmp_path / "empty").write_bytes(b"")
    assert MappedFile(tmp_path / "empty").sha256() == hashlib.sha256(b"").hexdigest()
    with pytest.raises(FileNotFoundError):
        MappedFile(tmp_path / "none")


def test_a_mapped_file_notices_that_it_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    mapped = MappedFile(path)
    assert mapped.is_still(path)
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "new").replace(path)
    assert not mapped.is_still(path)
    path.unlink()
    assert not mapped.is_still(path)


def test_weights_mapped_early_are_dropped_when_the_artifact_was_replaced(tmp_path: Path) -> None:
    path = write(tmp_path / "a", seed=1)
    early = MappedFile(path / WEIGHTS)
    write(path, seed=2)
    artifact = read_artifact(path, early)
    expected = random_tensors(artifact.spec, 2)
    for name, array in artifact.tensors.items():
        np.testing.assert_array_equal(array, expected[name])


def test_damaged_weights_do_not_load(tmp_path: Path) -> None:
    """A change that no check of values can see: only the hash, which now runs early and elsewhere."""
    path = write(tmp_path / "a")
    raw = bytearray((path / WEIGHTS).read_bytes())
    tensor = read_artifact(path).tensors["layers.0.ffn.up.q"]
    at = raw.index(tensor.tobytes())
    raw[at] = (raw[at] + 1) % 127
    (path / WEIGHTS).write_bytes(raw)
    with pytest.raises(ArtifactError, match="does not match its SHA-256"):
        approxrt.load(path)


def test_a_tokenizer_that_does_not_parse_fails_while_weights_are_packed(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    (path / "tokenizer.json").write_text('{"version": "none"}')
    config = json.loads((path / "config.json").read_text())
    data = (path / "tokenizer.json").read_bytes()
    config["files"]["tokenizer.json"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / "config.json").write_text(json.dumps(config))
    for _ in range(5):
        with pytest.raises(ArtifactError, match=r"tokenizer\.json cannot be used"):
            approxrt.load(path, threads=2)


@pytest.mark.parametrize("kind", ["f32", "s8", "bsr_s8"])
def test_callers_wait_for_packing(tmp_path: Path, kind: str) -> None:
    """Several Python threads ask an engine that is still being made ready."""
    artifact = read_artifact(write(tmp_path / "a", kind=kind, hidden=128, max_positions=64, max_length=64))
    ids = [np.arange(1, 30) % artifact.spec.vocab_size]
    expected = CpuEngine(artifact, 1).forward(ids, None, "logits")
    for _ in range(20):
        engine = CpuEngine(artifact, 2, wait=False)
        answers: list[np.ndarray] = []
        callers = [
            threading.Thread(target=lambda e=engine, a=answers: a.append(e.forward(ids, None, "logits")))
            for _ in range(4)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert len(answers) == 4
        for answer in answers:
            np.testing.assert_array_equal(answer, expected)


def test_an_engine_may_go_before_it_is_ready(tmp_path: Path) -> None:
    artifact = read_artifact(write(tmp_path / "a", hidden=512))
    for _ in range(20):
        CpuEngine(artifact, 2, wait=False)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc/self/smaps")
def test_a_mapped_model_does_not_hold_its_weights_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a", hidden=1024, max_positions=512)
    expected = CpuEngine(read_artifact(path), 2).forward([[1, 2, 3]], None, "logits")
    model = approxrt.load(path, threads=2, mmap=True)
    mapped, resident = mapped_kilobytes(path / WEIGHTS)
    assert mapped > 4000
    assert resident < mapped / 4
    # The embedding tables' pages return as they are read.
    np.testing.assert_array_equal(model.forward([[1, 2, 3]]), expected)
    del model
    model = approxrt.load(path, threads=2)
    assert mapped_kilobytes(path / WEIGHTS) == (0, 0)
    np.testing.assert_array_equal(model.forward([[1, 2, 3]]), expected)


def mapped_kilobytes(path: Path) -> tuple[int, int]:
    """(size, resident part) of this process's maps of a file."""
    size = resident = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Size:"):
            size += int(line.split()[1])
        elif inside and line.startswith("Rss:"):
            resident += int(line.split()[1])
    return size, resident


def test_the_weights_are_hashed_before_numpy_is_imported() -> None:
    """Overlap is possible, since `load`'s own module imports nothing heavy."""
    code = "import sys, approxrt; approxrt.load; print([m for m in ('numpy', 'tokenizers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_cold_start_benchmark(tmp_path: Path) -> None:
    path, out = write(tmp_path / "model", max_positions=128, max_length=128), tmp_path / "deep" / "cold.json"
    command = [sys.executable, str(ROOT / "bench" / "bench_cold_start.py"), str(path), "--rounds", "2"]
    env = {"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "PATH": "/usr/bin:/bin"}
    subprocess.run([*command, "--threads", "1", "--out", str(out)], env=env, check=True, capture_output=True)
    doc = json.loads(out.read_text())
    assert doc["schema"] == "approxrt.cold_start/1"
    assert doc["threads"] == 1
    bare, ours = doc["rows"]
    assert (bare["name"], ours["name"], ours["processes"]) == ("process", "approxrt:model", 2)
    assert 0 < ours["answer_s"] < ours["process_s"]
    assert ours["process_s_p20"] <= ours["process_s"] <= ours["process_s_p80"]
    assert bare["resident_mb"] < ours["resident_mb"] <= ours["peak_mb"]
    assert ours["resident_above_size_mb"] == pytest.approx(ours["resident_mb"] - ours["size_mb"])
    # The process answered, and what it answered is the model's.
    logits = approxrt.load(path).logits(doc["text"])
    np.testing.assert_allclose(ours["answer"], logits[0], rtol=1e-6)
