"""The artifact on disk: round trip, every corruption named, rights."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from artifact_edits import CARD, DOWN, UP, edit_config, edit_tensors, replace_tensor, seal, set_value, write
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from specs import TOKENIZER_JSON, random_tensors, small_spec

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.encoder import LayerSpec
from approxrt.artifact.spec.formats import LINEAR_KINDS
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError


@pytest.mark.parametrize("kind", LINEAR_KINDS)
def test_round_trip_is_exact_mapped_and_read_only(tmp_path: Path, kind: str) -> None:
    spec = small_spec(kind)
    tensors = random_tensors(spec)
    write_artifact(tmp_path / "a", spec, tensors, TOKENIZER_JSON, CARD)
    artifact = read_artifact(tmp_path / "a")
    assert artifact.spec == spec
    assert artifact.card == CARD
    assert artifact.tokenizer_json == TOKENIZER_JSON
    assert set(artifact.tensors) == set(tensors)
    for name, array in tensors.items():
        mapped = artifact.tensors[name]
        np.testing.assert_array_equal(mapped, array)
        assert mapped.dtype == array.dtype
        assert not mapped.flags.writeable and not mapped.flags.owndata
        base = mapped
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap), name


def test_the_safetensors_library_reads_the_same_weights(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    ours, theirs = read_artifact(path).tensors, load_file(path / "model.safetensors")
    assert set(ours) == set(theirs)
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_a_view_outlives_the_artifact(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    view = read_artifact(path).tensors["layers.0.ffn.up.bias"]
    expected = load_file(path / "model.safetensors")["layers.0.ffn.up.bias"]
    np.testing.assert_array_equal(view, expected)


# -- corruptions --------------------------------------------------------------


def flip_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-100] ^= 4
    (folder / "model.safetensors").write_bytes(data)


def truncate(name: str, keep: float) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * keep))


def raw_header(header: bytes) -> Callable[[Path], None]:
    def write_it(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 64)
        seal(folder, "model.safetensors")

    return write_it


def duplicate_index(tensors: dict[str, np.ndarray]) -> None:
    """Give a strip with two tiles the same column twice."""
    indices, indptr = tensors["layers.0.ffn.up.indices"].copy(), tensors["layers.0.ffn.up.indptr"]
    strip = int(np.argmax(np.diff(indptr) >= 2))
    indices[indptr[strip] + 1] = indices[indptr[strip]]
    tensors["layers.0.ffn.up.indices"] = indices


def dirty_row(tensors: dict[str, np.ndarray]) -> None:
    tiles = tensors[f"{UP}.tiles"].copy()
    tiles[-1, 3, 0] = 1
    tensors[f"{UP}.tiles"] = tiles


def dirty_column(tensors: dict[str, np.ndarray]) -> None:
    tiles = tensors[f"{DOWN}.tiles"].copy()
    (last,) = np.nonzero(tensors[f"{DOWN}.indices"] == 12)
    tiles[last[0], 0, 3] = 1
    tensors[f"{DOWN}.tiles"] = tiles


CORRUPTIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "missing files: model.safetensors"),
    "no card": (lambda f: (f / "card.json").unlink(), "missing files: card.json"),
    "pickle beside": (lambda f: (f / "weights.bin").write_bytes(b"x"), "not part of an artifact: weights.bin"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not valid JSON"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "config.json is not a JSON object"),
    "config binary": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json is not valid JSON"),
    "config deep": (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is not valid JSON"),
    "card NaN": (lambda f: (f / "card.json").write_text('{"a": NaN}'), "card.json is not valid JSON"),
    "config is a folder": (
        lambda f: ((f / "config.json").unlink(), (f / "config.json").mkdir()),
        "config.json is not a regular file",
    ),
    "other format": (lambda f: edit_config(f, lambda c: c.update(format="onnx")), "format 'onnx'"),
    "future version": (lambda f: edit_config(f, lambda c: c.update(format_version=2)), "reads version 1: upgrade"),
    "version true": (lambda f: edit_config(f, lambda c: c.update(format_version=True)), "format_version 'True'"),
    "no files": (lambda f: edit_config(f, lambda c: c.pop("files")), "no object `files`"),
    "truncated weights": (truncate("model.safetensors", 0.7), "truncated"),
    "weights of 5 bytes": (truncate("model.safetensors", 0.0001), "at least 8"),
    "empty weights": (truncate("model.safetensors", 0), "at least 8"),
    "truncated header": (truncate("model.safetensors", 0.02), "truncated"),
    "bit flip": (flip_bit, "model.safetensors does not match its SHA-256"),
    "tokenizer changed": (lambda f: (f / "tokenizer.json").write_bytes(b"{}"), "tokenizer.json has 2 bytes"),
    "header not JSON": (raw_header(b"{"), "header of model.safetensors is not valid JSON"),
    "header a list": (raw_header(b"[]"), "header of model.safetensors is not a JSON object"),
    "entry a string": (raw_header(b'{"a": "b"}'), "its entry is not an object"),
    "unknown dtype": (raw_header(b'{"a": {"dtype": "F3", "shape": [], "data_offsets": [0, 0]}}'), "unknown dtype"),
    "negative shape": (raw_header(b'{"a": {"dtype": "I8", "shape": [-1], "data_offsets": [0, 0]}}'), "its shape"),
    "huge shape": (
        raw_header(b'{"a": {"dtype": "I8", "shape": [0, 99999999999, 99999999999], "data_offsets": [0, 0]}}'),
        "absurdly large",
    ),
    "offsets past the end": (
        raw_header(b'{"a": {"dtype": "I8", "shape": [65], "data_offsets": [0, 65]}}'),
        "ends at byte 65",
    ),
    "offsets unfit": (
        raw_header(b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4]}}'),
        "needs 16 bytes",
    ),
    "overlap": (
        raw_header(
            b'{"a": {"dtype": "I8", "shape": [40], "data_offsets": [0, 40]},'
            b' "b": {"dtype": "I8", "shape": [40], "data_offsets": [24, 64]}}'
        ),
        "overlaps",
    ),
    "hole": (raw_header(b'{"a": {"dtype": "I8", "shape": [40], "data_offsets": [24, 64]}}'), "leaves a hole"),
    "tensor gone": (lambda f: edit_tensors(f, lambda t: t.pop(f"{UP}.bias")), f"missing tensors: {UP}.bias"),
    "tiles gone": (lambda f: edit_tensors(f, lambda t: t.pop(f"{UP}.tiles")), f"missing tensors: {UP}.tiles"),
    "tensor added": (
        lambda f: edit_tensors(f, lambda t: t.update(x=np.zeros(3, np.float32))),
        "unexpected tensors: x",
    ),
    "wrong dtype": (replace_tensor(f"{UP}.bias", lambda a: a.astype(np.float16)), "is F16[51]"),
    "wrong shape": (replace_tensor(f"{UP}.bias", lambda a: a[:-1]), "is F32[50]; the config asks for F32[51]"),
    "NaN": (set_value("embeddings.norm.weight", 3, np.nan), "1 values that are NaN or infinite"),
    "infinity": (set_value("embeddings.position.weight", (2, 1), -np.inf), "1 values that are NaN or infinite"),
    "scale NaN": (set_value(f"{UP}.scale", 7, np.nan), "1 scales that are not > 0 (the first is nan at 7)"),
    "scale zero": (set_value(f"{UP}.scale", 7, 0), "1 scales that are not > 0 (the first is 0.0 at 7)"),
    "scale negative": (set_value("embeddings.word.scale", 2, -1), "1 scales that are not > 0"),
    "q -128": (set_value("embeddings.word.q", (1, 2), -128), "1 values of -128"),
    "tile -128": (set_value(f"{UP}.tiles", (0, 2, 1), -128), "1 values of -128"),
    "index out of range": (set_value(f"{UP}.indices", 0, 10), "1 tile indices out of range (the largest is 10"),
    "index far out": (set_value(f"{UP}.indices", -1, 65535), "the largest is 65535"),
    "index twice": (lambda f: edit_tensors(f, duplicate_index), "does not ascend strictly within strip"),
    "indptr falls": (set_value(f"{UP}.indptr", 1, 10_000), "falls in between"),
    "indptr negative": (set_value(f"{UP}.indptr", 1, -1), "falls in between"),
    "indptr start": (set_value(f"{UP}.indptr", 0, 1), "it starts at 1"),
    "indptr end": (set_value(f"{UP}.indptr", -1, 10_000), "ends at 10000"),
    "indptr dtype": (replace_tensor(f"{UP}.indptr", lambda a: a.astype(np.int64)), "is int64[5]"),
    "indices dtype": (replace_tensor(f"{UP}.indices", lambda a: a.astype(np.int32)), "U16[nnz] is needed"),
    "tiles shape": (replace_tensor(f"{UP}.tiles", lambda a: a.reshape(-1, 4, 16)), "I8[nnz, 16, 4] is needed"),
    "fewer tiles": (replace_tensor(f"{UP}.tiles", lambda a: a[:-1]), "indices"),
    "row padding": (lambda f: edit_tensors(f, dirty_row), "rows past output 51"),
    "column padding": (lambda f: edit_tensors(f, dirty_column), "columns past input 51"),
    "spec value": (
        lambda f: edit_config(f, lambda c: c["model"].update(activation="swish")),
        "model.activation is 'swish'; it must be one of gelu",
    ),
    "spec type": (
        lambda f: edit_config(f, lambda c: c["model"].update(hidden_size="40")),
        "model.hidden_size is '40'; an integer is needed",
    ),
    "spec size": (
        lambda f: edit_config(f, lambda c: c["model"].update(vocab_size=1 << 40)),
        "it must be between 1 and 4194304",
    ),
    "no model": (lambda f: edit_config(f, lambda c: c.pop("model")), "model is None; an object is needed"),
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_corruption_is_named(tmp_path: Path, case: str) -> None:
    path = write(tmp_path / "a")
    corrupt, expected = CORRUPTIONS[case]
    corrupt(path)
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path)
    assert expected in str(caught.value)
    assert str(path) in str(caught.value)


@given(
    name=st.sampled_from(["config.json", "model.safetensors", "tokenizer.json", "card.json"]),
    where=st.floats(0, 1, exclude_max=True),
    content=st.binary(min_size=1, max_size=12),
    cut=st.booleans(),
    sealed=st.booleans(),
)
def test_damage_anywhere_is_an_artifact_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, name: str, where: float, content: bytes, cut: bool, sealed: bool
) -> None:
    """Bytes overwritten or cut off at any place, with and without a checksum made to fit: never another exception."""
    path = write(tmp_path_factory.mktemp("fuzz") / "a")
    data = bytearray((path / name).read_bytes())
    # Headers and JSON sit at the front of their files: look there more often.
    at = int(where * (len(data) if sealed else min(len(data), 3000)))
    before = bytes(data)
    data[at:] = content if cut else content + data[at + len(content) :]
    (path / name).write_bytes(data)
    if sealed and name in ("model.safetensors", "tokenizer.json"):
        seal(path, name)
    try:
        read_artifact(path)
    except ArtifactError:
        return
    assert sealed or bytes(data) == before or name in ("config.json", "card.json")


def test_all_faults_come_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    set_value(f"{UP}.scale", 7, np.nan)(path)
    set_value(f"{DOWN}.indices", 0, 999)(path)
    edit_config(path, lambda c: c["model"].update(layer_norm_eps=-1, inputs="many"))
    (path / "tokenizer.json").write_bytes(b"{}")
    (path / "extra.py").write_text("boom")
    (path / "card.json").unlink()
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path)
    text = "\n".join(caught.value.faults)
    for part in ("scales", "out of range", "layer_norm_eps", "many", "tokenizer.json has", "extra.py", "card.json"):
        assert part in text
    assert str(caught.value).count("\n  - ") == len(caught.value.faults) >= 7


def test_not_an_artifact(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        read_artifact(tmp_path / "nowhere")
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ArtifactError, match="is a file, not a folder"):
        read_artifact(file)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        (checkpoint / name).write_text("{}")
    with pytest.raises(ArtifactError, match="approxrt convert"):
        read_artifact(checkpoint)


def test_files_of_a_hub_are_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "a")
    (path / "README.md").write_text("about")
    (path / ".gitattributes").write_text("x")
    read_artifact(path)


def as_other_user(code: str) -> subprocess.CompletedProcess[str]:
    """Run Python code as `nobody` when the tests run as root, whom permissions do not stop."""
    drop = "import os, sys\nif os.geteuid() == 0:\n    os.setgid(65534); os.setuid(65534)\n"
    return subprocess.run(
        [sys.executable, "-c", IMPORTS + drop + code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


# Imported before the rights are dropped: the interpreter's folders may be closed to others.
IMPORTS = """
import numpy as np
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError
from specs import TOKENIZER_JSON, random_tensors, small_spec
spec = small_spec('bsr_s8')
tensors = random_tensors(spec)
"""


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that every user can reach; pytest's own is closed to others."""
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="approxrt-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_no_read_permission(open_folder: Path) -> None:
    path = write(open_folder / "a")
    (path / "model.safetensors").chmod(0)
    run = as_other_user(f"try: read_artifact({str(path)!r})\nexcept ArtifactError as e: print(e)")
    assert run.returncode == 0, run.stderr
    assert "model.safetensors cannot be read: permission denied" in run.stdout
    (path / "model.safetensors").chmod(0o644)
    path.chmod(0)
    run = as_other_user(f"try: read_artifact({str(path)!r})\nexcept ArtifactError as e: print(e)")
    assert run.returncode == 0, run.stderr
    assert "permission denied" in run.stdout
    path.chmod(0o755)


def test_no_write_permission(open_folder: Path) -> None:
    closed = open_folder / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    run = as_other_user(
        f"try: write_artifact({str(closed / 'a')!r}, spec, tensors, TOKENIZER_JSON, {{}})\n"
        "except ArtifactError as e: print(e)"
    )
    assert run.returncode == 0, run.stderr
    assert "cannot be written: permission denied" in run.stdout
    assert "choose a folder" in run.stdout
    assert list(closed.iterdir()) == []


def test_reading_is_fast(tmp_path: Path) -> None:
    """A model of MiniLM's size, int8 (24 MB), opens and validates in under a tenth of a second of processor time
    (25 ms of wall clock on an idle machine; processor time holds on a busy one too)."""
    layers = (LayerSpec(12, 32, 1536, *["s8"] * 6),) * 6
    spec = small_spec("s8", hidden=384, layers=layers, vocab_size=30522, max_positions=512, max_length=512)
    path = write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, CARD)
    times = []
    for _ in range(7):
        start = time.process_time()
        read_artifact(path)
        times.append(time.process_time() - start)
    assert min(times) < 0.1, times
