"""Artifacts of strangers: any damage is an ArtifactError, or harmless; never another exception, a wait or a crash.

`APPROXRT_FUZZ_EXAMPLES` (make fuzz) sets how many examples each target tries. What was found is kept in corpus/, a
folder a file of the artifact: each of its files has once brought a reader down, or is of that kind.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from decoders import decoder_tokenizer, small_decoder_spec
from families import build_tokenizer
from fuzzing import FUZZ, bounded, damaged, documents, to_bytes
from hypothesis import given
from hypothesis import strategies as st
from specs import random_tensors, small_spec

import approxrt
from approxrt.artifact.writer import write_artifact
from approxrt.errors import ArtifactError, InputError

CORPUS = Path(__file__).parent / "corpus"
WEIGHTS, TOKENIZER, CONFIG, CARD = "model.safetensors", "tokenizer.json", "config.json", "card.json"
FOUND = sorted(str(path.relative_to(CORPUS)) for path in CORPUS.glob("artifact-*/*"))


def encoder(folder: Path, kind: str) -> Path:
    tokenizer = build_tokenizer("bert")
    spec = small_spec(kind, vocab_size=tokenizer.get_vocab_size())
    return write_artifact(folder, spec, random_tensors(spec), tokenizer.to_str().encode(), {"task": "sst2"})


def decoder(folder: Path, kind: str) -> Path:
    tokenizer = decoder_tokenizer()
    spec = small_decoder_spec(
        kind, vocab_size=tokenizer.get_vocab_size(), eos_token_ids=(2,), special_tokens={"eos_token": "</s>"}
    )
    return write_artifact(folder, spec, random_tensors(spec), tokenizer.to_str().encode(), {"task": "lm"})


class Sound:
    """A sound artifact's files, and a folder in which one of them is put in the place of another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "changed"
        self.files = {}
        for kind, build in {"encoder": encoder, "decoder": decoder}.items():
            for weights in ("bsr_s8", "s4", "g4"):
                path = build(folder / f"{kind}-{weights}", weights)
                self.files[kind, weights] = {file.name: file.read_bytes() for file in path.iterdir()}

    def with_file(self, key: tuple[str, str], name: str, data: bytes, sealed: bool = True) -> Path:
        """Write the artifact `key` with other content of one file, and a checksum that fits."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        files = {**self.files[key], name: data}
        if sealed and name in (WEIGHTS, TOKENIZER):
            config = json.loads(files[CONFIG])
            config["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            files[CONFIG] = json.dumps(config).encode()
        for file, content in files.items():
            (self.folder / file).write_bytes(content)
        return self.folder


KEYS = [(kind, weights) for kind in ("encoder", "decoder") for weights in ("bsr_s8", "s4", "g4")]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    return Sound(tmp_path_factory.mktemp("fuzz"))


def use(folder: Path, mmap: bool = False) -> None:
    """Load, and run what loads: a fault that loading misses would be met here."""
    with bounded((ArtifactError, InputError)):
        model: Any = approxrt.load(folder, threads=1, mmap=mmap)
        model.forward([[1, 2, 0]])
        json.dumps(model.info)


@FUZZ
@given(data=st.data(), key=st.sampled_from(KEYS))
def test_config(sound: Sound, data: st.DataObject, key: tuple[str, str]) -> None:
    """config.json with members of other values, without some, or with more."""
    document = data.draw(documents(json.loads(sound.files[key][CONFIG])))
    use(sound.with_file(key, CONFIG, to_bytes(document)))


@FUZZ
@given(data=st.data(), key=st.sampled_from(KEYS))
def test_header(sound: Sound, data: st.DataObject, key: tuple[str, str]) -> None:
    """The JSON header of model.safetensors, with a length that fits."""
    weights = sound.files[key][WEIGHTS]
    length = int.from_bytes(weights[:8], "little")
    document = data.draw(documents(json.loads(weights[8 : 8 + length])))
    raw = to_bytes(document)
    raw += b" " * (-len(raw) % 8)
    use(sound.with_file(key, WEIGHTS, len(raw).to_bytes(8, "little") + raw + weights[8 + length :]))


@FUZZ
@given(data=st.data(), key=st.sampled_from(KEYS), mmap=st.booleans(), sealed=st.booleans())
def test_weights(sound: Sound, data: st.DataObject, key: tuple[str, str], mmap: bool, sealed: bool) -> None:
    """Bytes of model.safetensors, with a checksum that fits, mostly."""
    use(sound.with_file(key, WEIGHTS, data.draw(damaged(sound.files[key][WEIGHTS])), sealed), mmap)


@FUZZ
@given(data=st.data(), key=st.sampled_from(KEYS))
def test_tokenizer(sound: Sound, data: st.DataObject, key: tuple[str, str]) -> None:
    """tokenizer.json, which a library in another language parses."""
    document = data.draw(documents(json.loads(sound.files[key][TOKENIZER])))
    use(sound.with_file(key, TOKENIZER, to_bytes(document)))


@FUZZ
@given(data=st.data(), key=st.sampled_from(KEYS), name=st.sampled_from((CONFIG, CARD, TOKENIZER)))
def test_text(sound: Sound, data: st.DataObject, key: tuple[str, str], name: str) -> None:
    """Bytes of the files of JSON."""
    use(sound.with_file(key, name, data.draw(damaged(sound.files[key][name]))))


@pytest.mark.parametrize("name", FOUND)
def test_corpus(sound: Sound, name: str) -> None:
    """Try again what was found once; artifact-KIND-FILE/NAME is the content of an artifact's FILE.

    A config.json has "FILES" in the place of sizes and checksums, which are those of the other files.
    """
    _, kind, file = Path(name).parent.name.split("-", 2)
    files = json.loads(sound.files[kind, "s4"][CONFIG])["files"]
    data = (CORPUS / name).read_bytes().replace(b'"FILES"', json.dumps(files).encode())
    folder = sound.with_file((kind, "s4"), file, data)
    use(folder)
    with pytest.raises(ArtifactError):
        approxrt.load(folder)


def test_there_is_a_corpus() -> None:
    assert {Path(name).parent.name.split("-", 2)[2] for name in FOUND} == {CONFIG, CARD, TOKENIZER, WEIGHTS}
