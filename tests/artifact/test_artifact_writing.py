"""Artifacts are written whole or not at all: overwriting, kills at every step, full disks."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from specs import TOKENIZER_JSON, random_tensors, small_spec

from approxrt.artifact import writer
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError

CARD = {"source": "test", "accuracy": None}
UP = "layers.0.ffn.up"  # 40 -> 51: 10 tile columns, 4 strips, 3 rows in the last


def write(path: Path, kind: str = "bsr_s8", seed: int = 0, **kwargs) -> Path:
    spec = small_spec(kind)
    return write_artifact(path, spec, random_tensors(spec, seed), TOKENIZER_JSON, CARD, **kwargs)


def test_existing_artifact_needs_overwrite(tmp_path: Path) -> None:
    path = write(tmp_path / "a", seed=1)
    with pytest.raises(ArtifactError, match="--overwrite"):
        write(path, seed=2)
    before = read_artifact(path).tensors[f"{UP}.bias"].copy()
    write(path, seed=2, overwrite=True)
    assert not np.array_equal(read_artifact(path).tensors[f"{UP}.bias"], before)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_only_an_artifact_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="not an approxrt artifact"):
        write(tmp_path / "thesis", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="not a folder"):
        write(tmp_path / "file", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_an_old_view_survives_overwriting(tmp_path: Path) -> None:
    path = write(tmp_path / "a", seed=1)
    old = read_artifact(path)
    expected = {name: array.copy() for name, array in old.tensors.items()}
    write(path, seed=2, overwrite=True)
    for name, array in old.tensors.items():
        np.testing.assert_array_equal(array, expected[name])


def test_exchange_without_renameat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldLibrary:
        """A C library from before renameat2."""

    path = write(tmp_path / "a", seed=1)
    monkeypatch.setattr(writer.ctypes, "CDLL", lambda *_, **__: OldLibrary())
    write(path, seed=2, overwrite=True)
    expected = random_tensors(small_spec("bsr_s8"), 2)[f"{UP}.bias"]
    np.testing.assert_array_equal(read_artifact(path).tensors[f"{UP}.bias"], expected)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_bad_content_is_refused_before_writing(tmp_path: Path) -> None:
    spec = small_spec("s8")
    tensors = random_tensors(spec)
    tensors[f"{UP}.scale"] = -tensors[f"{UP}.scale"]
    with pytest.raises(ArtifactError) as caught:
        write_artifact(tmp_path / "a", spec, tensors, b"not json", {"x": float("nan")})
    assert len(caught.value.faults) == 3
    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from approxrt.artifact import writer
from specs import TOKENIZER_JSON, random_tensors, small_spec
step, path = int(sys.argv[1]), sys.argv[2]
count = 0
def at_step(function):
    def wrapped(*args, **kwargs):
        global count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped
for name in ("_write_file", "_sync_folder", "_exchange"):
    setattr(writer, name, at_step(getattr(writer, name)))
writer.os.fsync = at_step(os.fsync)
spec = small_spec("bsr_s8")
writer.write_artifact(path, spec, random_tensors(spec, 2), TOKENIZER_JSON, {}, overwrite=True)
print("finished", count)
"""


def run_killed(step: int, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", KILLED, str(step), str(path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.mark.parametrize("exists", [False, True])
def test_kill_at_every_step_leaves_a_whole_artifact_or_none(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "a"
    expected = {seed: random_tensors(small_spec("bsr_s8"), seed)[f"{UP}.bias"] for seed in (1, 2)}
    outcomes = []
    for step in range(1, 40):
        if exists:
            write(path, seed=1, overwrite=True)
        run = run_killed(step, path)
        if run.returncode == 0:
            assert "finished" in run.stdout
            break
        assert run.returncode == -signal.SIGKILL, run.stderr
        if not exists and not path.exists():
            outcomes.append("none")
            continue
        bias = read_artifact(path).tensors[f"{UP}.bias"]
        outcomes.append("old" if np.array_equal(bias, expected[1]) else "new")
        assert np.array_equal(bias, expected[1]) or np.array_equal(bias, expected[2])
        if not exists:
            import shutil

            shutil.rmtree(path)
    assert len(outcomes) >= 6
    assert outcomes[0] == ("old" if exists else "none")
    write(path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a"], "abandoned folders are removed by the next write"


def test_a_live_write_is_not_taken_for_an_abandoned_one(tmp_path: Path) -> None:
    code = KILLED.replace("os.kill(os.getpid(), signal.SIGKILL)", "(print('waiting', flush=True), sys.stdin.read())")
    child = subprocess.Popen(
        [sys.executable, "-c", code, "4", str(tmp_path / "a")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == "waiting\n"
    write(tmp_path / "a")
    child.stdin.close()
    assert child.wait(30) == 0
    read_artifact(tmp_path / "a")


def test_disk_full(tmp_path: Path) -> None:
    """A file-size limit stands in for a full disk: the kernel refuses the write midway."""
    path = write(tmp_path / "a", seed=1)
    size = (path / "model.safetensors").stat().st_size
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, limits[1]))
    try:
        with pytest.raises(ArtifactError, match="cannot be written: file too large") as caught:
            write(path, seed=2, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert str(path) in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    expected = random_tensors(small_spec("bsr_s8"), 1)[f"{UP}.bias"]
    np.testing.assert_array_equal(read_artifact(path).tensors[f"{UP}.bias"], expected)


def test_no_space_left_names_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def to_full_device(path: Path, data: bytes) -> None:
        with open("/dev/full", "wb", buffering=0) as device:
            device.write(data)

    monkeypatch.setattr(writer, "_write_file", to_full_device)
    with pytest.raises(ArtifactError, match=r"no space left on device.*free some space") as caught:
        write(tmp_path / "a")
    assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_load_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the checks before writing overlook: what is on disk is read back before it gets the name."""
    path = write(tmp_path / "a", seed=1)
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    monkeypatch.setattr(writer, "_content_faults", lambda *_: [])
    spec = small_spec("s8")
    tensors = random_tensors(spec)
    tensors["layers.0.ffn.up.scale"][3] = 0
    with pytest.raises(ArtifactError, match=r"not written: .*scales that are not > 0") as caught:
        write_artifact(path, spec, tensors, TOKENIZER_JSON, {}, overwrite=True)
    assert caught.value.path == str(path)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_a_card_that_cannot_be_read_replaces_nothing(tmp_path: Path) -> None:
    """A card may hold anything that is JSON; the reader's limits hold for it, too, and for what a check adds."""
    spec = small_spec("s8")
    deep: list[Any] = []
    for _ in range(80):
        deep = [deep]
    for card, check in (({"a": deep}, None), ({}, lambda _: {"a": deep})):
        with pytest.raises(ArtifactError, match=r"not written: card\.json is not valid JSON: nested too deeply"):
            write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, card, check=check)
        assert not list(tmp_path.iterdir())
