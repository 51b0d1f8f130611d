"""Headers and tensors of .gguf files: what the package `gguf` reads, and a refusal for everything that is not whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from gguf_files import random_model, write_gguf  # noqa: E402

import approxrt  # noqa: E402
from approxrt.errors import CheckpointError, UnsupportedModelError  # noqa: E402
from approxrt.models.decoder import is_gguf, load_decoder  # noqa: E402
from approxrt.models.gguf_file import open_gguf  # noqa: E402

ARCHITECTURES = ("llama",)


@pytest.fixture(scope="module")
def model() -> Any:
    return random_model("llama")


@pytest.fixture(scope="module")
def path(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "model.gguf", model, "llama")


def test_keys_are_the_packages(path: Path) -> None:
    file = open_gguf(path, ARCHITECTURES)
    theirs = {key: field.contents() for key, field in gguf.GGUFReader(str(path)).fields.items()}
    theirs = {key: value for key, value in theirs.items() if not key.startswith("GGUF.")}
    assert file.metadata.keys() == theirs.keys() and len(theirs) > 15
    for key, value in theirs.items():
        np.testing.assert_array_equal(file.metadata[key], value)
    assert file.bytes == path.stat().st_size


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_floats_are_the_packages(kind: str, model: Any, tmp_path: Path) -> None:
    form = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(tmp_path / "t.gguf"), "llama")
    weight = np.random.default_rng(0).normal(0, 1, (7, 3, 64)).astype(np.float32)
    blocks = gguf.quants.quantize(weight, form)
    writer.add_tensor("t", blocks, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    tensor = open_gguf(tmp_path / "t.gguf", ARCHITECTURES).tensors["t"]
    assert (tensor.kind, tensor.shape, tensor.size) == (kind, weight.shape, weight.size)
    np.testing.assert_array_equal(tensor.floats(), gguf.quants.dequantize(blocks, form).reshape(weight.shape))


def test_a_cut_file_says_so_wherever_it_ends(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    ends = [*range(4, 64, 3), *range(64, len(data), max(1, len(data) // 60)), len(data) - 1]
    for end in ends:
        cut.write_bytes(data[:end])
        with pytest.raises(CheckpointError, match=r"truncated|is truncated or damaged"):
            open_gguf(cut, ARCHITECTURES)


def test_damage_is_no_other_error(path: Path, tmp_path: Path) -> None:
    """Any byte of the header may be wrong: the file is refused, or read as if it were meant so."""
    data = bytearray(path.read_bytes())
    header = data.index(b"tokenizer.ggml.merges")
    damaged = tmp_path / "damaged.gguf"
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(4, header, 150):
        changed = bytearray(data)
        changed[at] ^= int(rng.integers(1, 256))
        damaged.write_bytes(changed)
        try:
            load_decoder(damaged, None)
        except CheckpointError:
            refused += 1
    assert refused > 50


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"GGUF", "truncated"),
        (b"GGUF\x01\0\0\0" + bytes(32), "of GGUF version 1; supported: 2, 3"),
        (b"GGUF\0\0\0\x03" + bytes(32), "big-endian"),
        (b"tjgg" + bytes(32), "before August 2023"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(32), "zip archive"),
        (b"hello world", "begins with b'hell'"),
        (b"GGUF\x03\0\0\0" + b"\xff" * 16, "header says 18446744073709551615 tensors; the limit is"),
    ],
)
def test_what_is_no_such_file_is_named(content: bytes, named: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=named):
        approxrt.convert(path, tmp_path / "a")


def test_a_big_endian_file_is_named(model: Any, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "be.gguf", model, "llama", endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(CheckpointError, match=r"big-endian \(GGUF version 3.*little-endian"):
        approxrt.convert(path, tmp_path / "a")


def test_names_and_contents_both_tell(path: Path, tmp_path: Path) -> None:
    data = path.read_bytes()
    for name in ("M.GGUF", "sha256-0123", "model.bin"):
        (tmp_path / name).write_bytes(data)
        assert is_gguf(tmp_path / name)
        assert load_decoder(tmp_path / name, None).spec.architecture == "llama"
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "text").write_text("GGU")
    assert not is_gguf(tmp_path / "folder.gguf") and not is_gguf(tmp_path / "text") and not is_gguf(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be read: .*absent"):
        approxrt.convert(tmp_path / "absent.gguf", tmp_path / "a")


def test_an_architecture_is_refused_before_anything_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(str(path), "mamba")
    writer.add_token_list([f"token {i}" for i in range(100_000)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    code = (
        "import sys, time\n"
        "for name in ('torch', 'transformers', 'gguf'): sys.modules[name] = None\n"
        "import approxrt\n"
        "begin = time.perf_counter()\n"
        f"try: approxrt.convert({str(path)!r}, {str(tmp_path / 'a')!r})\n"
        "except approxrt.errors.UnsupportedModelError as error: print(time.perf_counter() - begin, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, message = done.stdout.split(" ", 1)
    assert "architecture 'mamba' is not supported; supported .gguf files: gpt2, llama, qwen2" in message
    assert float(seconds) < 1


def test_converting_needs_neither_torch_nor_transformers(path: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers'): sys.modules[name] = None\n"
        "import approxrt\n"
        f"print(approxrt.load(approxrt.convert({str(path)!r}, {str(tmp_path / 'a')!r})).generate('the', 3))\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


@pytest.fixture
def parts(model: Any, tmp_path: Path) -> list[Path]:
    """Three parts and more, as llama.cpp names them."""
    write_gguf(tmp_path / "split.gguf", model, "llama", split_max_tensors=8)
    found = sorted(tmp_path.glob("split-*.gguf"))
    assert len(found) == 3
    return found


def test_any_part_stands_for_all(path: Path, parts: list[Path]) -> None:
    whole = load_decoder(path, None)
    for part in parts:
        found = load_decoder(part, None)
        assert found.spec == whole.spec and found.tokenizer_json == whole.tokenizer_json
        for name in whole.tensors:
            np.testing.assert_array_equal(found.tensors[name], whole.tensors[name])


def test_parts_that_are_missing_or_strange_are_named(parts: list[Path], model: Any, tmp_path: Path) -> None:
    parts[1].rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(CheckpointError, match=r"part 1 of 3 .*missing beside it: split-00002-of-00003.gguf"):
        load_decoder(parts[0], None)
    with pytest.raises(CheckpointError, match=r"parts are found by name: call it NAME-00002-of-00003\.gguf"):
        load_decoder(tmp_path / "elsewhere.gguf", None)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(CheckpointError, match="says that it is part 3 of 3; its name says 2 of 3"):
        load_decoder(parts[0], None)
    with pytest.raises(UnsupportedModelError, match="'llama' is not supported"):
        open_gguf(parts[0], ("gpt2",))
