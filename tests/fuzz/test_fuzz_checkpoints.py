"""Folders of checkpoints: any damage is one of approxrt's errors, or harmless.

Config, weights, and what sentence-transformers writes around an encoder are read as a conversion reads them. Their
tokenizer, which transformers builds, is read once and taken as it is.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers", reason="transformers is not installed")

from decoders import build_decoder
from families import build_checkpoint
from fuzzing import FUZZ, bounded, damaged, documents, to_bytes
from hypothesis import given
from hypothesis import strategies as st

from approxrt.errors import ApproxrtError, CheckpointWarning
from approxrt.models import checkpoint as encoders
from approxrt.models import decoder as decoders
from approxrt.models.tokenizer import load_tokenizer

CORPUS = Path(__file__).parent / "corpus"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
DECODERS = ("llama", "qwen2", "gpt2")
FAMILIES = ("bert", "distilbert", "roberta", "electra", "mpnet", "albert", "nomic_bert", *DECODERS)
FOUND = sorted(str(path.relative_to(CORPUS)) for path in CORPUS.glob("checkpoint-*/*"))
SENTENCE = "sentence"
SENTENCE_FILES = (
    "modules.json",
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)


class Checkpoints:
    """Sound checkpoints by family, and a folder in which one file has other content."""

    def __init__(self, root: Path) -> None:
        self.root, self.sound = root, {}
        for family in FAMILIES:
            build: Any = build_decoder if family in DECODERS else build_checkpoint
            self.sound[family] = build(family, root / family, layers=1, hidden=32, heads=2)
        folder = build_checkpoint(
            "bert", root / SENTENCE, layers=1, hidden=32, plain=True, pooling="mean", max_seq_length=64
        )
        (folder / SENTENCE_FILES[2]).write_text(
            json.dumps({"prompts": {"query": "q: "}, "similarity_fn_name": "cosine"})
        )
        self.sound[SENTENCE] = folder
        self.tokenizers = {
            family: load_tokenizer(folder, typed=family not in DECODERS) for family, folder in self.sound.items()
        }

    def read(self, family: str, name: str, data: bytes) -> list[Exception]:
        """Read the checkpoint of a family whose file `name` holds `data`, and return how it is refused, if it is."""
        folder = self.root / "changed"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.sound[family], folder)
        (folder / name).write_bytes(data)
        tokenizer = self.tokenizers[family]
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), bounded(ApproxrtError) as raised:
            for module in (encoders, decoders):
                patch.setattr(module, "load_tokenizer", lambda *_, **__: tokenizer)
            if family in DECODERS:
                warnings.simplefilter("ignore", CheckpointWarning)
                decoders.load_any_decoder(folder)
            else:
                encoders.load_checkpoint(folder)
        return raised


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoints]:
    made = Checkpoints(tmp_path_factory.mktemp("checkpoints"))
    for family in made.sound:
        sound = (made.sound[family] / CONFIG).read_bytes()
        assert not made.read(family, CONFIG, sound)  # and what is imported late is imported now
    yield made


@FUZZ
@given(data=st.data(), family=st.sampled_from(FAMILIES))
def test_config(checkpoints: Checkpoints, data: st.DataObject, family: str) -> None:
    sound = json.loads((checkpoints.sound[family] / CONFIG).read_bytes())
    checkpoints.read(family, CONFIG, to_bytes(data.draw(documents(sound))))


@FUZZ
@given(data=st.data(), name=st.sampled_from(SENTENCE_FILES))
def test_sentence_files(checkpoints: Checkpoints, data: st.DataObject, name: str) -> None:
    sound = json.loads((checkpoints.sound[SENTENCE] / name).read_bytes())
    checkpoints.read(SENTENCE, name, to_bytes(data.draw(documents(sound))))


@FUZZ
@given(
    data=st.data(), family=st.sampled_from(FAMILIES), name=st.sampled_from((CONFIG, WEIGHTS, "tokenizer_config.json"))
)
def test_bytes(checkpoints: Checkpoints, data: st.DataObject, family: str, name: str) -> None:
    path = checkpoints.sound[family] / name
    checkpoints.read(family, name, data.draw(damaged(path.read_bytes() if path.exists() else b"{}")))


@pytest.mark.parametrize("name", FOUND)
def test_corpus(checkpoints: Checkpoints, name: str) -> None:
    """Try again what was found once; checkpoint-FAMILY-FILE/NAME is the content of FILE."""
    _, family, file = Path(name).parent.name.split("-", 2)
    assert checkpoints.read(family, file, (CORPUS / name).read_bytes())


def test_there_is_a_corpus() -> None:
    assert FOUND
