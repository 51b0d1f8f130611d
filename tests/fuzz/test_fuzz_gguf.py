"""Headers of .gguf files: any damage is a CheckpointError, or harmless."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")

from fuzzing import FUZZ, bounded, damaged  # noqa: E402
from gguf_files import random_model, write_gguf  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from approxrt.errors import CheckpointError  # noqa: E402
from approxrt.models.decoder import load_decoder  # noqa: E402

CORPUS = Path(__file__).parent / "corpus"
FAMILIES = ("llama", "gpt2")
NUMBERS = (0, 1, 2, 3, 4, 5, 255, 2**16, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("gguf")
    return {
        family: write_gguf(folder / f"{family}.gguf", random_model(family, layers=1), family).read_bytes()
        for family in FAMILIES
    }


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changed") / "model.gguf"


def use(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with bounded(CheckpointError):
        read = load_decoder(path, None, grouped=True)
        for name in read.tensors:
            read.tensors[name]


@FUZZ
@given(data=st.data(), family=st.sampled_from(FAMILIES))
def test_bytes(files: dict[str, bytes], path: Path, data: st.DataObject, family: str) -> None:
    use(path, data.draw(damaged(files[family], front=12_000)))


@FUZZ
@given(family=st.sampled_from(FAMILIES), at=st.floats(0, 1), number=st.sampled_from(NUMBERS), wide=st.booleans())
def test_numbers(files: dict[str, bytes], path: Path, family: str, at: float, number: int, wide: bool) -> None:
    """A count, a length, a type or a dimension: any four or eight bytes of the header set to an odd number."""
    data = bytearray(files[family])
    layout = "<Q" if wide else "<I"
    start = 4 + int(at * (data.rindex(b"output_norm") + 40))
    struct.pack_into(layout, data, start, number & (2 ** (8 * struct.calcsize(layout)) - 1))
    use(path, bytes(data))


@pytest.mark.parametrize("name", sorted(file.name for file in (CORPUS / "gguf").iterdir()))
def test_corpus(path: Path, name: str) -> None:
    use(path, (CORPUS / "gguf" / name).read_bytes())
    with pytest.raises(CheckpointError):
        load_decoder(path, None)
